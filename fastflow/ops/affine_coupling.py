"""Affine coupling: z = c x + t on the active channels, x copied on the passive ones, log|det| per sample.

    shift after  (default)     z = x c + t          x = (z - t) / c
    shift first                z = (x + t) c        x = z / c - t
    log_det = sum of log c over the active elements (negated for the inverse)

The scale c comes from the conditioner's raw output s by a `ScaleMap`. RealNVP (Dinh et al. 2017, arXiv 1605.08803,
eq. 4 and 6), NICE (1410.8516, additive), Glow (1807.03039, sigmoid(s + 2)).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import (
    COMPUTE_DTYPE,
    bad_device,
    bad_dtype,
    bad_shape,
    bad_type,
    check_dims,
    check_float,
    check_log_det,
    compute_dtype,
)
from fastflow.ops._define import Op, under_transform

# The index in this tuple is the `kind` of the schemas and of every kernel.
KINDS = ("additive", "exp", "sigmoid", "softplus", "tanh", "clamp_atan", "clamp_tanh", "clamp_sigmoid", "soft_clip")


@dataclass(frozen=True)
class ScaleMap:
    """How the raw scale s becomes the scale c > 0, and whether the shift is added before c multiplies.

    additive       c = 1 (no scale)
    exp            log c = s
    sigmoid        c = sigmoid(s + bias) + eps
    softplus       c = softplus(s + bias) + eps, eps > 0
    tanh           log c = gain tanh(s), gain learned: a tensor [n_active] or a scalar tensor
    clamp_atan     log c = clamp 0.636 atan(s)                    (FrEIA)
    clamp_tanh     log c = clamp tanh(s)                          (FrEIA)
    clamp_sigmoid  log c = clamp 2 (sigmoid(s) - 1/2)             (FrEIA)
    soft_clip      log c = s / (1 + |s| / clamp)                  (zuko, clamp = -ln slope)

    Raises ValueError for an unknown kind, a negative eps, a clamp that is not positive, or a setting the kind ignores.
    """

    kind: str = "exp"
    bias: float = 0.0
    eps: float = 0.0
    clamp: float = 1.0
    gain: Tensor | None = None
    shift_first: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"ScaleMap: kind is {self.kind!r}, expected one of {', '.join(KINDS)}")
        if (self.bias or self.eps) and self.kind not in ("sigmoid", "softplus"):
            raise ValueError(f"ScaleMap: bias and eps have no meaning for kind {self.kind!r}, leave them at 0")
        if self.eps < 0 or (self.kind == "softplus" and self.eps == 0):
            raise ValueError(f"ScaleMap: eps is {self.eps} for kind {self.kind!r}, expected a number "
                             f"{'> 0, or the scale underflows to 0' if self.kind == 'softplus' else '>= 0'}")
        if self.clamp != 1.0 and self.kind not in ("clamp_atan", "clamp_tanh", "clamp_sigmoid", "soft_clip"):
            raise ValueError(f"ScaleMap: clamp has no meaning for kind {self.kind!r}, leave it at 1")
        if not self.clamp > 0:
            raise ValueError(f"ScaleMap: clamp is {self.clamp}, expected a number > 0")
        if self.gain is not None and self.kind != "tanh":
            raise ValueError(f"ScaleMap: gain has no meaning for kind {self.kind!r}, leave it at None")
        object.__setattr__(self, "index", KINDS.index(self.kind))


def _select(x: Tensor, start: int, step: int, count: int) -> Tensor:
    """The `count` active channels start, start + step, ... of dim 1, as a view."""
    return x if count == x.shape[1] else x[:, start : start + step * (count - 1) + 1 : step]


def _merge(x: Tensor, active: Tensor, start: int, step: int) -> Tensor:
    """x with its active channels replaced."""
    count = active.shape[1]
    if count == x.shape[1]:
        return active
    return x.slice_scatter(active, 1, start, start + step * (count - 1) + 1, step)


def _per_channel(gain: Tensor, like: Tensor) -> Tensor:
    return gain.view(-1, *[1] * (like.dim() - 2))


def _scale(s: Tensor, gain: Tensor | None, kind: int, bias: float, eps: float, clamp: float) -> tuple[Tensor, Tensor]:
    """(c, log c), both in the form that is stable for every s."""
    name = KINDS[kind]
    if name == "sigmoid":
        c = torch.sigmoid(s + bias) + eps
        return c, (torch.log(c) if eps > 0 else F.logsigmoid(s + bias))
    if name == "softplus":
        c = F.softplus(s + bias) + eps
        return c, torch.log(c)
    if name == "exp":
        log_c = s
    elif name == "tanh":
        log_c = torch.tanh(s) if gain is None else _per_channel(gain, s) * torch.tanh(s)
    elif name == "clamp_atan":
        log_c = clamp * 0.636 * torch.atan(s)
    elif name == "clamp_tanh":
        log_c = clamp * torch.tanh(s)
    elif name == "clamp_sigmoid":
        log_c = clamp * torch.tanh(0.5 * s)
    else:
        log_c = s / (1 + s.abs() / clamp)
    return torch.exp(log_c), log_c


def _log_scale_slope(s: Tensor, gain: Tensor | None, kind: int, bias: float, eps: float, clamp: float) -> Tensor:
    """d log c / ds."""
    name = KINDS[kind]
    if name == "exp":
        return torch.ones_like(s)
    if name == "sigmoid":
        rest = torch.sigmoid(-(s + bias))
        sigmoid = torch.sigmoid(s + bias)
        return rest * sigmoid / (sigmoid + eps) if eps > 0 else rest
    if name == "softplus":
        return torch.sigmoid(s + bias) / (F.softplus(s + bias) + eps)
    if name == "clamp_atan":
        return clamp * 0.636 / (1 + s * s)
    if name == "soft_clip":
        return (1 + s.abs() / clamp) ** -2
    if name == "clamp_sigmoid":
        return 0.5 * clamp * (1 - torch.tanh(0.5 * s) ** 2)
    slope = 1 - torch.tanh(s) ** 2
    if name == "clamp_tanh":
        return clamp * slope
    return slope if gain is None else _per_channel(gain, s) * slope


def reference(x: Tensor, scale: Tensor | None, shift: Tensor, gain: Tensor | None, mask: Tensor | None,
              log_det: Tensor | None, start: int, step: int, kind: int, bias: float, eps: float, clamp: float,
              shift_first: bool, inverse: bool) -> tuple[Tensor, Tensor]:
    """The definition, in differentiable PyTorch. Arguments as in the schema."""
    dtype = compute_dtype(x)
    v, t = _select(x, start, step, shift.shape[1]).to(dtype), shift.to(dtype)
    s = None if scale is None else scale.to(dtype)
    if mask is not None:
        t = torch.where(mask, 0.0, t)
        s = None if s is None else torch.where(mask, 0.0, s)
    if s is None:
        u, log_c = (v - t if inverse else v + t), None
    else:
        c, log_c = _scale(s, gain, kind, bias, eps, clamp)
        if inverse:
            u, log_c = (v / c - t if shift_first else (v - t) / c), -log_c
        else:
            u = (v + t) * c if shift_first else v * c + t
    if mask is not None:
        u = torch.where(mask, v, u)
        log_c = None if log_c is None else torch.where(mask, 0.0, log_c)
    own = x.new_zeros(x.shape[0], dtype=dtype) if log_c is None else log_c.flatten(1).sum(1)
    return _merge(x, u.to(x.dtype), start, step), own if log_det is None else log_det + own


def backward_reference(grad_z: Tensor, grad_log_det: Tensor | None, saved: Tensor, scale: Tensor | None, shift: Tensor,
                       gain: Tensor | None, mask: Tensor | None, start: int, step: int, kind: int, bias: float,
                       eps: float, clamp: float, shift_first: bool, inverse: bool, from_input: bool,
                       ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, scale, shift and gain from the op's output (`from_input=False`) or its input.

    With u the op's output, v its input, g and h the gradients of u and log_det, the gradient of log c is
    g (u - t) + h, g u + h, -g u - h and -g (u + t) - h for the four forms of the header: no division, no v.
    """
    dtype = compute_dtype(saved)
    count = shift.shape[1]
    g, w = _select(grad_z, start, step, count).to(dtype), _select(saved, start, step, count).to(dtype)
    t = shift.to(dtype)
    s = torch.zeros_like(t) if scale is None else scale.to(dtype)
    if mask is not None:
        s, t = torch.where(mask, 0.0, s), torch.where(mask, 0.0, t)
    c = torch.ones_like(s) if scale is None else _scale(s, gain, kind, bias, eps, clamp)[0]
    if inverse:
        grad_v = g / c
        grad_t = -g if shift_first else -grad_v
        u_or_less = (w / c if from_input else w + t) if shift_first else ((w - t) / c if from_input else w)
        grad_log_c = -g * u_or_less
    else:
        grad_v = g * c
        grad_t = grad_v if shift_first else g
        u_or_less = ((w + t) * c if from_input else w) if shift_first else (w * c if from_input else w - t)
        grad_log_c = g * u_or_less
    if grad_log_det is not None:
        h = grad_log_det.to(dtype).view(-1, *[1] * (g.dim() - 1))
        grad_log_c = grad_log_c - h if inverse else grad_log_c + h
    if mask is not None:
        grad_v = torch.where(mask, g, grad_v)
        grad_t, grad_log_c = torch.where(mask, 0.0, grad_t), torch.where(mask, 0.0, grad_log_c)
    grad_x = _merge(grad_z.to(saved.dtype), grad_v.to(saved.dtype), start, step)
    grad_shift = grad_t.to(shift.dtype)
    if scale is None:
        return grad_x, shift.new_empty(0), grad_shift, shift.new_empty(0)
    grad_scale = (grad_log_c * _log_scale_slope(s, gain, kind, bias, eps, clamp)).to(scale.dtype)
    if gain is None:
        return grad_x, grad_scale, grad_shift, shift.new_empty(0)
    grad_gain = (grad_log_c * torch.tanh(s)).sum([0, *range(2, s.dim())])
    return grad_x, grad_scale, grad_shift, grad_gain.to(gain.dtype)


def _fallback(x: Tensor, *args) -> tuple[Tensor, Tensor]:
    z, log_det = reference(x, *args)
    return torch.empty_like(x).copy_(z), log_det


def _backward_fallback(grad_z: Tensor, grad_log_det: Tensor | None, saved: Tensor, scale: Tensor | None, shift: Tensor,
                       *args) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_scale, grad_shift, grad_gain = backward_reference(grad_z, grad_log_det, saved, scale, shift, *args)
    if scale is not None:
        grad_scale = torch.empty_like(scale).copy_(grad_scale)
    return torch.empty_like(saved).copy_(grad_x), grad_scale, torch.empty_like(shift).copy_(grad_shift), grad_gain


def _fake(x, scale, shift, gain, mask, log_det, *settings):
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=compute_dtype(x))


def _backward_fake(grad_z, grad_log_det, saved, scale, shift, gain, mask, *settings):
    return (torch.empty_like(saved), shift.new_empty(0) if scale is None else torch.empty_like(scale),
            torch.empty_like(shift), shift.new_empty(0) if gain is None else torch.empty_like(gain))


_SETTINGS = ("int start, int step, int kind, float bias, float eps, float clamp, bool shift_first, bool inverse")

_forward = Op(
    "affine_coupling",
    f"(Tensor x, Tensor? scale, Tensor shift, Tensor? gain, Tensor? mask, Tensor? log_det, {_SETTINGS})"
    " -> (Tensor, Tensor)",
    reference=reference, fallback=_fallback, fake=_fake, on_cuda="triton",
)
_backward = Op(
    "affine_coupling_backward",
    f"(Tensor grad_z, Tensor? grad_log_det, Tensor saved, Tensor? scale, Tensor shift, Tensor? gain, Tensor? mask,"
    f" {_SETTINGS}, bool from_input) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=backward_reference, fallback=_backward_fallback, fake=_backward_fake,
    on_cuda="triton",
)


class _AffineCoupling(torch.autograd.Function):
    """Saves the output; in 16-bit storage, where its rounding would reach the gradients, the input."""

    @staticmethod
    def forward(ctx, x, scale, shift, gain, mask, log_det, settings, backend):
        z, total = _forward.kernel(backend, x.device.type)(x, scale, shift, gain, mask, log_det, *settings)
        ctx.from_input = x.dtype in (torch.bfloat16, torch.float16)
        ctx.settings, ctx.backend = settings, backend
        ctx.set_materialize_grads(False)
        if scale is None:
            ctx.save_for_backward(mask)
            ctx.active = (shift.shape[1], shift.dtype)
        else:
            ctx.save_for_backward(x if ctx.from_input else z, scale, shift, gain, mask)
        return z, total

    @staticmethod
    def backward(ctx, grad_z, grad_log_det):
        saved, *rest = ctx.saved_tensors
        grad_running = grad_log_det if ctx.needs_input_grad[5] else None
        if not rest:
            return (*_AffineCoupling._additive_backward(ctx, grad_z, mask=saved), None, grad_running, None, None)
        scale, shift, gain, mask = rest
        if grad_z is None:
            grad_z = torch.zeros_like(saved)
        # Under create_graph=True the gradients themselves are differentiated: only the reference can be.
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        kernel = backward_reference if differentiable else _backward.kernel(ctx.backend, saved.device.type)
        grad_x, grad_scale, grad_shift, grad_gain = kernel(
            grad_z, grad_log_det, saved, scale, shift, gain, mask, *ctx.settings, ctx.from_input)
        return grad_x, grad_scale, grad_shift, None if gain is None else grad_gain, None, grad_running, None, None

    @staticmethod
    def _additive_backward(ctx, grad_z, mask):
        """Adding a shift needs no kernel to differentiate: both gradients are views of the incoming one."""
        if grad_z is None:
            return None, None, None, None
        start, step, *_, inverse = ctx.settings
        count, dtype = ctx.active
        grad_shift = _select(grad_z, start, step, count).to(dtype)
        if mask is not None:
            grad_shift = grad_shift.masked_fill(mask, 0.0)
        return grad_z, None, -grad_shift if inverse else grad_shift, None


def affine_coupling(x: Tensor, scale: Tensor | None, shift: Tensor, *, scale_map: ScaleMap, active: slice | None = None,
                    mask: Tensor | None = None, log_det: Tensor | None = None, inverse: bool = False,
                    ) -> tuple[Tensor, Tensor]:
    """Scales and shifts the active channels of x, copies the others, and adds the log-determinant, in one pass.

    x          [B, C, *spatial], 2 to 5 dims, float64/float32/bfloat16/float16, any strides
    scale      [B, n_active, *spatial] raw scale s, any strides, x's dtype or another float dtype; None for "additive"
    shift      like scale, same dtype
    active     the transformed channels of dim 1 as a slice with step >= 1; None: all of them
    mask       bool, broadcastable to x.shape[1:], True where x passes unchanged; excludes `active`
    log_det    [B] running log-determinant in nats, float32 (float64 for float64 x), to which this op's is added
    inverse    False: x -> z; True: z -> x, the exact inverse of the same function

    Returns (z, log_det): z in x's shape and dtype, log_det [B]. Arithmetic is float32 (float64 for float64 x).
    Raises TypeError or ValueError naming the argument; RuntimeError if a forced backend cannot serve the call.
    """
    start, step, gain, mask = _check(x, scale, shift, scale_map, active, mask, log_det)
    settings = (start, step, scale_map.index, scale_map.bias, scale_map.eps, scale_map.clamp, scale_map.shift_first,
                inverse)
    backend = _backend.forced()
    if backend == "reference" or under_transform():
        return reference(x, scale, shift, gain, mask, log_det, *settings)
    if torch.is_grad_enabled() and (
        x.requires_grad or shift.requires_grad or (scale is not None and scale.requires_grad)
        or (log_det is not None and log_det.requires_grad) or (gain is not None and gain.requires_grad)
    ):
        return _AffineCoupling.apply(x, scale, shift, gain, mask, log_det, settings, backend)
    kernel = _forward.dispatch if backend is None else _forward.kernel(backend, x.device.type)
    return kernel(x, scale, shift, gain, mask, log_det, *settings)


def _check(x, scale, shift, scale_map, active, mask, log_det) -> tuple[int, int, Tensor | None, Tensor | None]:
    """Refuses what the kernels would have to trust; returns start, step, gain and mask as the schema wants them.

    Written inline because it runs on every call: of a small batch's 10 microseconds these checks take about 2.
    """
    op, why = "affine_coupling", "to match the active part of x"
    if not isinstance(scale_map, ScaleMap):
        raise bad_type(op, "scale_map", scale_map, "a ScaleMap")
    if not (isinstance(x, Tensor) and isinstance(shift, Tensor) and x.dtype in COMPUTE_DTYPE):
        check_float(op, "x", x)
        check_float(op, "shift", shift)
    expected, device, dtype = x.shape, x.device, shift.dtype
    if not 2 <= len(expected) <= 5:
        check_dims(op, x)
    start, step = 0, 1
    if active is not None:
        if mask is not None:
            raise ValueError(f"{op}: active and mask are both given, expected at most one of them")
        start, step, expected = _active_channels(expected, active)
    if shift.shape != expected:
        raise bad_shape(op, "shift", shift, expected, why)
    if dtype not in COMPUTE_DTYPE:
        check_float(op, "shift", shift)
    if shift.device != device:
        raise bad_device(op, "shift", shift, x)
    if (scale is None) != (scale_map.kind == "additive"):
        raise ValueError(f"{op}: scale is {'None' if scale is None else 'a Tensor'}, expected "
                         f"{'a Tensor' if scale is None else 'None'} for scale map {scale_map.kind!r}")
    if scale is not None:
        if not isinstance(scale, Tensor):
            raise bad_type(op, "scale", scale)
        if scale.shape != expected:
            raise bad_shape(op, "scale", scale, expected, why)
        if scale.dtype != dtype:
            raise bad_dtype(op, "scale", scale, f"{dtype} to match shift")
        if scale.device != device:
            raise bad_device(op, "scale", scale, x)
    if log_det is not None:
        check_log_det(op, x, log_det)
    if mask is not None:
        mask = _full_mask(x, mask)
    gain = scale_map.gain
    if gain is not None:
        gain = _full_gain(x, gain, expected[1])
    return start, step, gain, mask


def _active_channels(shape: torch.Size, active: slice) -> tuple[int, int, torch.Size]:
    if not isinstance(active, slice):
        raise bad_type("affine_coupling", "active", active, "a slice of the channels")
    channels = range(shape[1])[active]  # not active.indices, which torch.compile cannot trace in torch 2.11
    start, step, count = channels.start, channels.step, len(channels)
    if step < 1 or count == 0:
        raise ValueError(f"affine_coupling: active {active} selects {count} of {shape[1]} channels with step {step}, "
                         "expected at least one channel and a step of at least 1")
    return start, step, (shape[0], count) if len(shape) == 2 else (shape[0], count, *shape[2:])


def _full_mask(x: Tensor, mask: Tensor) -> Tensor:
    op = "affine_coupling"
    if not isinstance(mask, Tensor):
        raise bad_type(op, "mask", mask)
    if mask.dtype != torch.bool:
        raise bad_dtype(op, "mask", mask, "bool, True where x passes unchanged")
    if mask.device != x.device:
        raise bad_device(op, "mask", mask, x)
    if mask.shape == x.shape[1:]:
        return mask.contiguous()
    try:
        return mask.expand(x.shape[1:]).contiguous()
    except RuntimeError:
        raise bad_shape(op, "mask", mask, f"one broadcastable to {tuple(x.shape[1:])}") from None


def _full_gain(x: Tensor, gain: Tensor, count: int) -> Tensor:
    op = "affine_coupling"
    check_float(op, "gain", gain)
    if gain.shape != (count,) and gain.dim() != 0:
        raise bad_shape(op, "gain", gain, f"({count},) or a scalar")
    if gain.device != x.device:
        raise bad_device(op, "gain", gain, x)
    return gain.to(compute_dtype(x)).expand(count).contiguous()
