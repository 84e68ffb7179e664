"""Channel mixing, the invertible 1x1 convolution: z = W x on the channels of every pixel.

    log_det = pixels * log|det W|        x = W^-1 z

Any affine map of the channels goes through the same kernels, so that a normalisation beside a mix costs no pass of its
own; x and z may be two tensors that share the channels, so that neither a split nor a merge around a coupling does.
Determinant and inverse are computed in float64, once a call, whatever the number of rows. Glow (Kingma and Dhariwal
2018, arXiv 1807.03039, section 3.2).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import COMPUTE_DTYPE, check_dims, check_float, check_log_det
from fastflow.ops._define import Op, under_transform
from fastflow.ops.channel_map import ChannelMap, Weight, channel_map, check_weight
from fastflow.ops.packing import empty_channels
from fastflow.ops.squeeze import ORDERS, squeeze

MOST_CHANNELS = 64  # of the kernels; above, the reference is a matrix product that keeps the vendor's library busy

Parts = Tensor | tuple[Tensor, Tensor]


def _join(x: Tensor, rest: Tensor | None) -> Tensor:
    return x if rest is None else torch.cat([x, rest], 1)


def _order(squeezing: int) -> str:
    return ORDERS[abs(squeezing) - 1]


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.view(-1, *[1] * (x.dim() - 2))


def reference(x: Tensor, rest: Tensor | None, matrix: Tensor, center: Tensor | None, shift: Tensor | None, own: Tensor,
              log_det: Tensor | None, split: int, squeezing: int) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in differentiable PyTorch.

    x, rest   [B, n, *spatial] and, if there is a rest, [B, C - n, *spatial]: the first channels and the others
    matrix    [C, C], in the compute dtype, as center and shift, [C] or None, are: z = matrix (x - center) + shift
    own       [], what every row's log_det gets
    split     0: z has all channels and the second result is empty; else how many of the first channels z has
    squeezing 0; n > 0: x is squeezed first, in the n-th of squeeze's orders; n < 0: z is un-squeezed last
    """
    joined = _join(x, rest)
    joined = squeeze(joined, order=_order(squeezing)) if squeezing > 0 else joined
    v = joined.to(matrix.dtype)
    v = v if center is None else v - _per_channel(center, v)
    # The state of a flow stays float32 where autocast runs its conditioners in 16 bits.
    with torch.autocast(x.device.type, enabled=False):
        if v.dim() == 2:
            z = F.linear(v, matrix, shift)
        else:
            z = (matrix @ v.flatten(2)).view(v.shape)
            z = z if shift is None else z + _per_channel(shift, z)
    z = squeeze(z, order=_order(squeezing), inverse=True) if squeezing < 0 else z
    z, total = z.to(x.dtype), own.expand(x.shape[0]) if log_det is None else log_det + own
    return (z[:, :split], z[:, split:], total) if split else (z, z.new_empty(0), total)


def backward_reference(grad_z: Tensor, grad_rest: Tensor | None, x: Tensor, rest: Tensor | None, matrix: Tensor,
                       center: Tensor | None, squeezing: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and rest (empty if there is none), matrix and shift; center's is -matrix^T times the last."""
    v, g = (_join(*parts).to(matrix.dtype) for parts in ((x, rest), (grad_z, grad_rest)))
    v = squeeze(v, order=_order(squeezing)) if squeezing > 0 else v
    g = squeeze(g, order=_order(squeezing)) if squeezing < 0 else g
    v = v if center is None else v - _per_channel(center, v)
    with torch.autocast(x.device.type, enabled=False):
        grad_x = (g @ matrix if g.dim() == 2 else (matrix.T @ g.flatten(2)).view(g.shape)).to(x.dtype)
        grad_x = squeeze(grad_x, order=_order(squeezing), inverse=True) if squeezing > 0 else grad_x
        v, g = v.transpose(0, 1).flatten(1), g.transpose(0, 1).flatten(1)
        grads = g @ v.T, g.sum(1)
    if rest is None:
        return grad_x, grad_x.new_empty(0), *grads
    return *grad_x.split([x.shape[1], rest.shape[1]], 1), *grads


def empty_results(x: Tensor, channels: int, split: int, squeezing: int) -> tuple[Tensor, Tensor]:
    """Uninitialised z and its rest, which is empty if there is none: laid out like x, or, squeezed, contiguous."""
    if squeezing:
        by = (1, 2) if squeezing > 0 else (2, 1)
        size = [length * by[0] // by[1] for length in x.shape[2:]]
        channels = channels if squeezing > 0 else channels // 4
        z = x.new_empty(x.shape[0], split or channels, *size)
        return z, x.new_empty(x.shape[0], channels - split, *size) if split else x.new_empty(0)
    return empty_channels(x, split or channels), empty_channels(x, channels - split) if split else x.new_empty(0)


def empty_grads(x: Tensor, rest: Tensor | None, squeezing: int) -> tuple[Tensor, Tensor]:
    """Uninitialised gradients of x and rest, as `empty_results`."""
    def empty(part: Tensor) -> Tensor:
        return x.new_empty(part.shape) if squeezing else empty_channels(x, part.shape[1])

    return empty(x), x.new_empty(0) if rest is None else empty(rest)


def _fallback(x: Tensor, rest: Tensor | None, matrix: Tensor, *args) -> tuple[Tensor, Tensor, Tensor]:
    *parts, total = reference(x, rest, matrix, *args)
    return *map(Tensor.copy_, empty_results(x, matrix.shape[0], *args[-2:]), parts), total.clone()


def _backward_fallback(grad_z, grad_rest, x, rest, matrix, center, squeezing) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *parts, grad_matrix, grad_shift = backward_reference(grad_z, grad_rest, x, rest, matrix, center, squeezing)
    return *map(Tensor.copy_, empty_grads(x, rest, squeezing), parts), grad_matrix, grad_shift


def _fake(x, rest, matrix, center, shift, own, log_det, split, squeezing):
    return *empty_results(x, matrix.shape[0], split, squeezing), matrix.new_empty(x.shape[0])


def _backward_fake(grad_z, grad_rest, x, rest, matrix, center, squeezing):
    return *empty_grads(x, rest, squeezing), matrix.new_empty(matrix.shape), matrix.new_empty(matrix.shape[0])


_forward = Op(
    "channel_mix",
    "(Tensor x, Tensor? rest, Tensor matrix, Tensor? center, Tensor? shift, Tensor own, Tensor? log_det,"
    " int split, int squeeze) -> (Tensor, Tensor, Tensor)",
    reference=reference, fallback=_fallback, fake=_fake, on_cuda="triton",
)
_backward = Op(
    "channel_mix_backward",
    "(Tensor grad_z, Tensor? grad_rest, Tensor x, Tensor? rest, Tensor matrix, Tensor? center, int squeeze)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=backward_reference, fallback=_backward_fallback, fake=_backward_fake, on_cuda="triton",
)


class _ChannelMix(torch.autograd.Function):
    """Saves the input."""

    @staticmethod
    def forward(ctx, x, rest, matrix, center, shift, own, log_det, split, squeezing, kernel, backward_kernel):
        ctx.split, ctx.squeezing, ctx.kernel = split, squeezing, backward_kernel
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, rest, matrix, center)
        z, z_rest, total = kernel(x, rest, matrix, center, shift, own, log_det, split, squeezing)
        if not split:
            ctx.mark_non_differentiable(z_rest)
        return z, z_rest, total

    @staticmethod
    def backward(ctx, grad_z, grad_rest, grad_log_det):
        x, rest, matrix, center = ctx.saved_tensors
        split, squeezing, needed = ctx.split, ctx.squeezing, ctx.needs_input_grad
        grads = [None] * 5
        if grad_z is not None or grad_rest is not None:
            if grad_z is None or (split and grad_rest is None):
                zeros = [empty.zero_() for empty in empty_results(x, matrix.shape[0], split, squeezing)]
                grad_z, grad_rest = zeros[0] if grad_z is None else grad_z, zeros[1] if grad_rest is None else grad_rest
            # Under create_graph=True the gradients themselves are differentiated: only the reference can be.
            differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
            kernel = backward_reference if differentiable else ctx.kernel
            *found, grad_shift = kernel(grad_z, grad_rest if split else None, x, rest, matrix, center, squeezing)
            # No matrix product: backward may be run under autocast, which would round it to 16 bits.
            found += [-(matrix * grad_shift[:, None]).sum(0) if needed[3] else None, grad_shift]
            grads = [grad if need else None for grad, need in zip(found, needed, strict=False)]
        grad_own = grad_log_det.sum() if needed[5] and grad_log_det is not None else None
        return *grads, grad_own, grad_log_det if needed[6] else None, *[None] * 4


def map_channels(x: Parts, given: ChannelMap, log_det: Tensor | None = None, split: int = 0, squeezing: int = 0,
                 ) -> tuple[Parts, Tensor]:
    """z = matrix (x - center) + shift on every pixel, and pixels * log|det| added to log_det; arguments are trusted.

    x          [B, C, *spatial], or the pair (first channels, the others)
    split      0: z is one tensor; else the pair whose first has that many channels
    squeezing  as in `reference`
    """
    x, rest = x if isinstance(x, tuple) else (x, None)
    dtype = COMPUTE_DTYPE[x.dtype]
    matrix, log_abs_det, center, shift = (None if part is None else part.to(dtype) for part in given)
    own = log_abs_det * (math.prod(x.shape[2:]) // (4 if squeezing > 0 else 1))
    tensors, backend = (x, rest, matrix, center, shift, own, log_det), _backend.forced()
    if backend == "reference" or under_transform() or matrix.shape[0] > MOST_CHANNELS:
        z, z_rest, total = reference(*tensors, split, squeezing)
    elif torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors):
        kernels = (each.kernel(backend, x.device.type) for each in (_forward, _backward))
        z, z_rest, total = _ChannelMix.apply(*tensors, split, squeezing, *kernels)
    else:
        z, z_rest, total = _forward.kernel(backend, x.device.type)(*tensors, split, squeezing)
    return (z, z_rest) if split else z, total


def channel_mix(x: Tensor, weight: Weight, *, log_det: Tensor | None = None, inverse: bool = False,
                ) -> tuple[Tensor, Tensor]:
    """Multiplies the channels of every pixel by one matrix.

    x        [B, C, *spatial], 2 to 5 dims, float64/float32/bfloat16/float16
    weight   [C, C], z_i = sum_j weight[i, j] x_j, or its factors: `PLU`, `Householder` or `QR`
    log_det  [B] running log-determinant in nats, float32 (float64 for float64 x)

    Returns (z, log_det), z in x's dtype; `inverse=True` multiplies by the inverse matrix. A singular matrix gives
    log_det -inf. Raises TypeError or ValueError naming the argument.
    """
    op = "channel_mix"
    check_float(op, "x", x)
    check_dims(op, x)
    check_weight(op, weight, x, x.shape[1])
    if log_det is not None:
        check_log_det(op, x, log_det)
    return map_channels(x, channel_map(weight, inverse), log_det)
