"""Affine coupling: z = c x + t on the active channels, x copied on the passive ones, log|det| per sample.

    shift after  (default)     z = x c + t          x = (z - t) / c
    shift first                z = (x + t) c        x = z / c - t
    log_det = sum of log c over the active elements (negated for the inverse)

The scale c comes from the conditioner's raw output s by a `ScaleMap`. RealNVP (Dinh et al. 2017, arXiv 1605.08803,
eq. 4 and 6), NICE (1410.8516, additive), Glow (1807.03039, sigmoid(s + 2)).
"""

import torch
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
from fastflow.ops.packing import PACKINGS, empty_packed, pack, unpack
from fastflow.ops.scale_map import ScaleMap, log_scale_slope, scale_of, settings_of


def _select(x: Tensor, start: int, step: int, count: int) -> Tensor:
    """The `count` active channels start, start + step, ... of dim 1, as a view."""
    return x if count == x.shape[1] else x[:, start : start + step * (count - 1) + 1 : step]


def _merge(x: Tensor, active: Tensor, start: int, step: int) -> Tensor:
    """x with its active channels replaced."""
    count = active.shape[1]
    if count == x.shape[1]:
        return active
    return x.slice_scatter(active, 1, start, start + step * (count - 1) + 1, step)


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
        c, log_c = scale_of(s, gain, kind, bias, eps, clamp)
        if inverse:
            u, log_c = (v / c - t if shift_first else (v - t) / c), -log_c
        else:
            u = (v + t) * c if shift_first else v * c + t
    if mask is not None:
        u = torch.where(mask, v, u)
        log_c = None if log_c is None else torch.where(mask, 0.0, log_c)
    own = x.new_zeros(x.shape[0], dtype=dtype) if log_c is None else log_c.flatten(1).sum(1)
    return _merge(x, u.to(x.dtype), start, step), own if log_det is None else log_det + own


def backward_reference(grad_z: Tensor, grad_log_det: Tensor | None, saved: Tensor, scale: Tensor, shift: Tensor,
                       gain: Tensor | None, mask: Tensor | None, start: int, step: int, kind: int, bias: float,
                       eps: float, clamp: float, shift_first: bool, inverse: bool, from_input: bool, packing: int,
                       ) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of scale and shift as `packing` packs them, and of gain, from the op's output
    (`from_input=False`) or its input.

    With u the op's output, v its input, g and h the gradients of u and log_det, the gradient of log c is
    g (u - t) + h, g u + h, -g u - h and -g (u + t) - h for the four forms of the header: no division, no v.
    """
    dtype = compute_dtype(saved)
    count = shift.shape[1]
    g, w = _select(grad_z, start, step, count).to(dtype), _select(saved, start, step, count).to(dtype)
    s, t = scale.to(dtype), shift.to(dtype)
    if mask is not None:
        s, t = torch.where(mask, 0.0, s), torch.where(mask, 0.0, t)
    c, _ = scale_of(s, gain, kind, bias, eps, clamp)
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
    grad_scale = grad_log_c * log_scale_slope(s, gain, kind, bias, eps, clamp)
    grad_parameters = pack(grad_scale, grad_t, packing).to(scale.dtype)
    if gain is None:
        return grad_x, grad_parameters, scale.new_empty(0)
    grad_gain = (grad_log_c * torch.tanh(s)).sum([0, *range(2, s.dim())])
    return grad_x, grad_parameters, grad_gain.to(gain.dtype)


def _fallback(x: Tensor, *args) -> tuple[Tensor, Tensor]:
    z, log_det = reference(x, *args)
    return torch.empty_like(x).copy_(z), log_det


def _backward_fallback(grad_z: Tensor, grad_log_det: Tensor | None, saved: Tensor, scale: Tensor, *args,
                       ) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_parameters, grad_gain = backward_reference(grad_z, grad_log_det, saved, scale, *args)
    return torch.empty_like(saved).copy_(grad_x), empty_packed(scale).copy_(grad_parameters), grad_gain


def _fake(x, scale, shift, gain, mask, log_det, *settings):
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=compute_dtype(x))


def _backward_fake(grad_z, grad_log_det, saved, scale, shift, gain, *settings):
    return torch.empty_like(saved), empty_packed(scale), scale.new_empty(0) if gain is None else torch.empty_like(gain)


_SETTINGS = ("int start, int step, int kind, float bias, float eps, float clamp, bool shift_first, bool inverse")

_forward = Op(
    "affine_coupling",
    f"(Tensor x, Tensor? scale, Tensor shift, Tensor? gain, Tensor? mask, Tensor? log_det, {_SETTINGS})"
    " -> (Tensor, Tensor)",
    reference=reference, fallback=_fallback, fake=_fake, on_cuda="triton",
)
_backward = Op(
    "affine_coupling_backward",
    f"(Tensor grad_z, Tensor? grad_log_det, Tensor saved, Tensor scale, Tensor shift, Tensor? gain, Tensor? mask,"
    f" {_SETTINGS}, bool from_input, int packing) -> (Tensor, Tensor, Tensor)",
    reference=backward_reference, fallback=_backward_fallback, fake=_backward_fake,
    on_cuda="triton",
)


class _AffineCoupling(torch.autograd.Function):
    """Saves the output; in 16-bit storage, where its rounding would reach the gradients, the input.

    With a `packing`, `scale` is the tensor that holds both parameters, and `shift` is None.
    """

    @staticmethod
    def forward(ctx, x, scale, shift, gain, mask, log_det, settings, packing, backend):
        parameters = scale, shift
        if packing is not None:
            scale, shift = unpack(scale, packing)
        z, total = _forward.kernel(backend, x.device.type)(x, scale, shift, gain, mask, log_det, *settings)
        ctx.from_input = x.dtype in (torch.bfloat16, torch.float16)
        ctx.settings, ctx.packing, ctx.backend = settings, packing, backend
        ctx.set_materialize_grads(False)
        if scale is None:
            ctx.save_for_backward(mask)
            ctx.active = (shift.shape[1], shift.dtype)
        else:
            ctx.save_for_backward(x if ctx.from_input else z, *parameters, gain, mask)
        return z, total

    @staticmethod
    def backward(ctx, grad_z, grad_log_det):
        saved, *rest = ctx.saved_tensors
        grad_running = grad_log_det if ctx.needs_input_grad[5] else None
        if not rest:
            return *_AffineCoupling._additive_backward(ctx, grad_z, mask=saved), None, grad_running, None, None, None
        scale, shift, gain, mask = rest
        if ctx.packing is not None:
            scale, shift = unpack(scale, ctx.packing)
        if grad_z is None:  # then the output does not count, not even where it overflowed: 0 times infinity is NaN
            grad_z = saved = torch.zeros_like(saved)
        # Under create_graph=True the gradients themselves are differentiated: only the reference can be.
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        kernel = backward_reference if differentiable else _backward.kernel(ctx.backend, saved.device.type)
        grad_x, grad_parameters, grad_gain = kernel(grad_z, grad_log_det, saved, scale, shift, gain, mask,
                                                    *ctx.settings, ctx.from_input, ctx.packing or 0)
        grads = unpack(grad_parameters, 0) if ctx.packing is None else (grad_parameters, None)
        return grad_x, *grads, None if gain is None else grad_gain, None, grad_running, None, None, None

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
    op = "affine_coupling"
    each, gain, mask, settings = _check(op, x, scale_map, active, mask, log_det, inverse)
    _check_parameter(op, "shift", shift, each, x)
    if (scale is None) != (scale_map.kind == "additive"):
        raise ValueError(f"{op}: scale is {'None' if scale is None else 'a Tensor'}, expected "
                         f"{'a Tensor' if scale is None else 'None'} for scale map {scale_map.kind!r}")
    if scale is not None:
        _check_parameter(op, "scale", scale, each, x)
        if scale.dtype != shift.dtype:
            raise bad_dtype(op, "scale", scale, f"{shift.dtype} to match shift")
    return compute(x, scale, shift, gain, mask, log_det, settings, packing=None)


def affine_coupling_packed(x: Tensor, parameters: Tensor, *, packing: str, scale_map: ScaleMap,
                           active: slice | None = None, mask: Tensor | None = None, log_det: Tensor | None = None,
                           inverse: bool = False) -> tuple[Tensor, Tensor]:
    """`affine_coupling` with scale and shift in one tensor, as conditioners return them: it gets one gradient.

    parameters [B, 2 n_active, *spatial], any strides, x's dtype or another float dtype
    packing    "scale_shift" [s | t], "shift_scale" [t | s], "scale_shift_interleaved" s t s t ... or
               "shift_scale_interleaved" t s t s ... along dim 1

    All else as in `affine_coupling`; the additive map, which has no scale, is refused.
    """
    op = "affine_coupling_packed"
    if packing not in PACKINGS:
        raise ValueError(f"{op}: packing is {packing!r}, expected one of {', '.join(PACKINGS)}")
    each, gain, mask, settings = _check(op, x, scale_map, active, mask, log_det, inverse)
    if scale_map.kind == "additive":
        raise ValueError(f"{op}: the additive scale map has no scale, expected another map, or affine_coupling")
    _check_parameter(op, "parameters", parameters, (each[0], 2 * each[1], *each[2:]), x)
    return compute(x, parameters, None, gain, mask, log_det, settings, PACKINGS.index(packing))


def compute(x, scale, shift, gain, mask, log_det, settings, packing) -> tuple[Tensor, Tensor]:
    """Serves a checked call; scale, shift and packing as in `_AffineCoupling`."""
    backend = _backend.forced()
    plain = backend == "reference" or under_transform()
    if not plain and torch.is_grad_enabled() and (  # spelt out, for any() takes half a microsecond
        x.requires_grad or (scale is not None and scale.requires_grad) or (shift is not None and shift.requires_grad)
        or (log_det is not None and log_det.requires_grad) or (gain is not None and gain.requires_grad)
    ):
        return _AffineCoupling.apply(x, scale, shift, gain, mask, log_det, settings, packing, backend)
    if packing is not None:
        scale, shift = unpack(scale, packing)
    if plain:
        return reference(x, scale, shift, gain, mask, log_det, *settings)
    kernel = _forward.dispatch if backend is None else _forward.kernel(backend, x.device.type)
    return kernel(x, scale, shift, gain, mask, log_det, *settings)


def _check(op, x, scale_map, active, mask, log_det, inverse,
           ) -> tuple[tuple[int, ...], Tensor | None, Tensor | None, tuple]:
    """Refuses what the kernels would have to trust; returns the shape of scale and shift, gain, mask and the settings.

    Compares inline because it runs on every call: of a small batch's 10 microseconds all checks take about 2.
    """
    if not isinstance(scale_map, ScaleMap):
        raise bad_type(op, "scale_map", scale_map, "a ScaleMap")
    if not isinstance(x, Tensor) or x.dtype not in COMPUTE_DTYPE:
        check_float(op, "x", x)
    each, start, step = x.shape, 0, 1
    if not 2 <= len(each) <= 5:
        check_dims(op, x)
    if active is not None:
        if mask is not None:
            raise ValueError(f"{op}: active and mask are both given, expected at most one of them")
        each, start, step = _active_channels(op, each, active)
    if log_det is not None:
        check_log_det(op, x, log_det)
    if mask is not None:
        mask = _full_mask(op, x, mask)
    gain = scale_map.gain
    if gain is not None:
        gain = _full_gain(op, x, gain, each[1])
    settings = (start, step, *settings_of(scale_map), inverse)
    return each, gain, mask, settings


def _check_parameter(op: str, name: str, value: object, shape: tuple[int, ...], x: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype not in COMPUTE_DTYPE:
        check_float(op, name, value)
    if value.shape != shape:
        raise bad_shape(op, name, value, shape, "to match the active part of x")
    if value.device != x.device:
        raise bad_device(op, name, value, x)


def _active_channels(op: str, shape: torch.Size, active: slice) -> tuple[tuple[int, ...], int, int]:
    if not isinstance(active, slice):
        raise bad_type(op, "active", active, "a slice of the channels")
    channels = range(shape[1])[active]  # not active.indices, which torch.compile cannot trace in torch 2.11
    start, step, count = channels.start, channels.step, len(channels)
    if step < 1 or count == 0:
        raise ValueError(f"{op}: active {active} selects {count} of {shape[1]} channels with step {step}, "
                         "expected at least one channel and a step of at least 1")
    return (shape[0], count) if len(shape) == 2 else (shape[0], count, *shape[2:]), start, step


def _full_mask(op: str, x: Tensor, mask: Tensor) -> Tensor:
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


def _full_gain(op: str, x: Tensor, gain: Tensor, count: int) -> Tensor:
    check_float(op, "gain", gain)
    if gain.shape != (count,) and gain.dim() != 0:
        raise bad_shape(op, "gain", gain, f"({count},) or a scalar")
    if gain.device != x.device:
        raise bad_device(op, "gain", gain, x)
    return gain.to(compute_dtype(x)).expand(count).contiguous()
