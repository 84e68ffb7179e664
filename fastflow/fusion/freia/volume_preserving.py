"""FrEIA: couplings that preserve volume (GIN, Sorrenson et al. 2020, arXiv 2001.04872)."""

import math

import torch
from torch import Tensor

from fastflow.ops.affine_coupling import affine_coupling
from fastflow.ops.scale_map import ScaleMap

_EXP = ScaleMap("exp")


def row_preserving(x: Tensor, made: Tensor, scale_map: ScaleMap, inverse: bool) -> Tensor:
    """z = x exp(s - mean of s over the row) + t on all of x; made = [a | t], and s is scale_map's log c of a.

    The mean is the coupling's own log_det over the number of elements.
    """
    scale, shift = made.chunk(2, 1)
    given = shift if inverse else shift.new_zeros(()).expand_as(shift)
    z, log_det = affine_coupling(x, scale, given, scale_map=scale_map, inverse=inverse)
    factor = torch.exp(log_det * (-1 / math.prod(x.shape[1:]))).view(-1, *[1] * (x.dim() - 1))
    return z * factor if inverse else torch.addcmul(shift, z, factor)


def pixel_preserving(x: Tensor, made: Tensor, scale_map: ScaleMap, inverse: bool) -> Tensor:
    """As `row_preserving`, with the mean over the channels of every pixel."""
    scale, shift = made.chunk(2, 1)
    scale = _log_scale(scale.contiguous(), scale_map)
    return affine_coupling(x, scale - scale.mean(1, keepdim=True), shift, scale_map=_EXP, inverse=inverse)[0]


def _log_scale(a: Tensor, scale_map: ScaleMap) -> Tensor:
    if scale_map.kind == "clamp_atan":
        return torch.atan(a) * (0.636 * scale_map.clamp)
    if scale_map.kind == "clamp_sigmoid":
        return (torch.sigmoid(a) - 0.5) * (2 * scale_map.clamp)
    return torch.tanh(a) * scale_map.clamp
