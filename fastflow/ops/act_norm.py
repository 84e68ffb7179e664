"""Activation normalisation: one shift and one scale a channel.

    shift first (ActNorm)                z = (x - shift) exp(log_scale)      x = z exp(-log_scale) + shift
    shift last (`elementwise_affine`)    z = x exp(log_scale) + shift        x = (z - shift) exp(-log_scale)
    log_det = pixels * sum of log_scale     (negated for the inverse)

`act_norm_statistics` gives the parameters with which a batch comes out with mean 0 and standard deviation 1.
Glow (Kingma and Dhariwal 2018, arXiv 1807.03039, section 3.1).
"""

import math

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import (
    COMPUTE_DTYPE,
    bad_device,
    bad_shape,
    check_dims,
    check_float,
    check_log_det,
    compute_dtype,
)
from fastflow.ops._define import Op, under_transform


def _factor(x: Tensor, shift: Tensor, log_scale: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """What the op multiplies by, exp(log_scale) or its reciprocal, and the shift, shaped like a row of x."""
    dtype, shape = compute_dtype(x), (-1, *[1] * (x.dim() - 2))
    log_scale = log_scale.to(dtype)
    return torch.exp(-log_scale if inverse else log_scale).reshape(shape), shift.to(dtype).reshape(shape)


def reference(x: Tensor, shift: Tensor, log_scale: Tensor, log_det: Tensor | None, shift_first: bool, inverse: bool,
              ) -> tuple[Tensor, Tensor]:
    """The definition, in differentiable PyTorch. Arguments as in the schema."""
    dtype = compute_dtype(x)
    factor, t = _factor(x, shift, log_scale, inverse)
    v = x.to(dtype)
    z = (v - t) * factor if shift_first != inverse else v * factor + t
    own = (math.prod(x.shape[2:]) * log_scale.double().sum()).to(dtype)
    start = x.new_zeros(x.shape[0], dtype=dtype) if log_det is None else log_det
    return z.to(x.dtype), start - own if inverse else start + own


def backward_reference(grad_z: Tensor, grad_log_det: Tensor | None, saved: Tensor, shift: Tensor, log_scale: Tensor,
                       shift_first: bool, inverse: bool, from_input: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, shift and log_scale, from the op's input (`from_input`) or its output; those of the parameters
    in the dtype of reductions."""
    dtype, others = compute_dtype(saved), [0, *range(2, saved.dim())]
    factor, t = _factor(saved, shift, log_scale, inverse)
    g, w = grad_z.to(dtype), saved.to(dtype)
    subtracts = shift_first != inverse
    grad_x = g * factor
    if subtracts == from_input:
        w = w - t
    grad_log_scale = ((grad_x if from_input else g) * w).sum(others)
    if grad_log_det is not None:
        grad_log_scale = grad_log_scale + math.prod(saved.shape[2:]) * grad_log_det.to(dtype).sum()
    grad_shift = -grad_x.sum(others) if subtracts else g.sum(others)
    return grad_x.to(saved.dtype), grad_shift, -grad_log_scale if inverse else grad_log_scale


def _fallback(x: Tensor, *args) -> tuple[Tensor, Tensor]:
    z, log_det = reference(x, *args)
    return torch.empty_like(x).copy_(z), log_det


def _backward_fallback(grad_z: Tensor, grad_log_det: Tensor | None, saved: Tensor, *args,
                       ) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, *grads = backward_reference(grad_z, grad_log_det, saved, *args)
    return torch.empty_like(saved).copy_(grad_x), *grads


def _fake(x, shift, log_scale, log_det, *settings):
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=compute_dtype(x))


def _backward_fake(grad_z, grad_log_det, saved, shift, log_scale, *settings):
    grad_shift, grad_log_scale = (saved.new_empty(saved.shape[1], dtype=compute_dtype(saved)) for _ in range(2))
    return torch.empty_like(saved), grad_shift, grad_log_scale


_forward = Op(
    "act_norm",
    "(Tensor x, Tensor shift, Tensor log_scale, Tensor? log_det, bool shift_first, bool inverse) -> (Tensor, Tensor)",
    reference=reference, fallback=_fallback, fake=_fake, on_cuda="triton",
)
_backward = Op(
    "act_norm_backward",
    "(Tensor grad_z, Tensor? grad_log_det, Tensor saved, Tensor shift, Tensor log_scale, bool shift_first,"
    " bool inverse, bool from_input) -> (Tensor, Tensor, Tensor)",
    reference=backward_reference, fallback=_backward_fallback, fake=_backward_fake, on_cuda="triton",
)


class _ActNorm(torch.autograd.Function):
    """Saves the output; in 16-bit storage, where its rounding would reach the gradients, the input, and so where the
    shift comes last: what was scaled would be output minus shift, less exact."""

    @staticmethod
    def forward(ctx, x, shift, log_scale, log_det, shift_first, inverse, backend):
        z, total = _forward.kernel(backend, x.device.type)(x, shift, log_scale, log_det, shift_first, inverse)
        from_input = x.dtype in (torch.bfloat16, torch.float16) or shift_first == inverse
        ctx.settings, ctx.backend = (shift_first, inverse, from_input), backend
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if from_input else z, shift, log_scale)
        return z, total

    @staticmethod
    def backward(ctx, grad_z, grad_log_det):
        saved, shift, log_scale = ctx.saved_tensors
        if grad_z is None:  # then the output does not count, not even where it overflowed: 0 times infinity is NaN
            grad_z = saved = torch.zeros_like(saved)
        # Under create_graph=True the gradients themselves are differentiated: only the reference can be.
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        kernel = backward_reference if differentiable else _backward.kernel(ctx.backend, saved.device.type)
        grad_x, grad_shift, grad_log_scale = kernel(grad_z, grad_log_det, saved, shift, log_scale, *ctx.settings)
        grad_running = grad_log_det if ctx.needs_input_grad[3] else None
        return grad_x, grad_shift.to(shift.dtype), grad_log_scale.to(log_scale.dtype), grad_running, None, None, None


def act_norm(x: Tensor, shift: Tensor, log_scale: Tensor, *, log_det: Tensor | None = None, inverse: bool = False,
             ) -> tuple[Tensor, Tensor]:
    """Normalises every channel by its own shift and scale: z = (x - shift) exp(log_scale), or its exact inverse.

    x          [B, C, *spatial], 2 to 5 dims, float64/float32/bfloat16/float16, any strides
    shift      [C], any of these dtypes
    log_scale  [C], nats, any of these dtypes
    log_det    [B] running log-determinant in nats, float32 (float64 for float64 x)

    Returns (z, log_det), z in x's dtype. Arithmetic is float32 (float64 for float64 x). Raises TypeError or ValueError
    naming the argument; RuntimeError if a forced backend cannot serve the call.
    """
    op = "act_norm"
    check(op, x, log_det)
    for name, value in (("shift", shift), ("log_scale", log_scale)):
        check_parameter(op, name, value, x.shape[1:2], x, "to match the channels of x")
    return compute(x, shift, log_scale, log_det, shift_first=True, inverse=inverse)


def check(op: str, x: Tensor, log_det: Tensor | None) -> None:
    """Refuses a bad x or log_det. Compares inline because it runs on every call, of which it is no small part."""
    if not isinstance(x, Tensor) or x.dtype not in COMPUTE_DTYPE:
        check_float(op, "x", x)
    if not 2 <= x.dim() <= 5:
        check_dims(op, x)
    if log_det is not None:
        check_log_det(op, x, log_det)


def check_parameter(op: str, name: str, value: object, shape: tuple[int, ...], x: Tensor, why: str) -> None:
    """Refuses a shift or log_scale that is not of this shape."""
    if not isinstance(value, Tensor) or value.dtype not in COMPUTE_DTYPE:
        check_float(op, name, value)
    if value.shape != shape:
        raise bad_shape(op, name, value, tuple(shape), why)
    if value.device != x.device:
        raise bad_device(op, name, value, x)


def compute(x: Tensor, shift: Tensor, log_scale: Tensor, log_det: Tensor | None, shift_first: bool, inverse: bool,
            ) -> tuple[Tensor, Tensor]:
    """Serves a checked call of either form; shift and log_scale are [C]."""
    backend = _backend.forced()
    if backend == "reference" or under_transform():
        return reference(x, shift, log_scale, log_det, shift_first, inverse)
    if torch.is_grad_enabled() and (x.requires_grad or shift.requires_grad or log_scale.requires_grad
                                    or (log_det is not None and log_det.requires_grad)):  # fmt: skip
        return _ActNorm.apply(x, shift, log_scale, log_det, shift_first, inverse, backend)
    kernel = _forward.dispatch if backend is None else _forward.kernel(backend, x.device.type)
    return kernel(x, shift, log_scale, log_det, shift_first, inverse)


@torch.no_grad()
def act_norm_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, log_scale), each [C] in float64: mean and -log(std + 1e-6) of every channel of x [B, C, *spatial].

    The standard deviation is the unbiased one over batch and space. Raises ValueError for fewer than 2 rows, for values
    that are not finite, and for a channel without variance: all would leave a scale that no training mends.
    """
    op = "act_norm_statistics"
    check_float(op, "x", x)
    check_dims(op, x)
    if x.shape[0] < 2:
        raise ValueError(f"{op}: x has {x.shape[0]} row(s), expected at least 2 to measure a variance")
    values = x.double().transpose(0, 1).flatten(1)
    mean, std = values.mean(1), values.std(1)
    if not bool((mean.isfinite() & std.isfinite()).all()):
        raise ValueError(f"{op}: x has values that are not finite, expected finite ones")
    # Below this a spread is the rounding of a constant in float32.
    constant = std <= 1e-8 * mean.abs()
    if bool(constant.any()):
        channels = constant.nonzero().flatten().tolist()
        some = ", ".join(map(str, channels[:8])) + (", ..." if len(channels) > 8 else "")
        raise ValueError(f"{op}: x has zero variance in {len(channels)} of {len(constant)} channels ({some}), expected "
                         "a batch that varies in every channel; take a larger one, or add the dequantisation noise")
    return mean, -torch.log(std + 1e-6)
