"""Binarisation: a grey level becomes the probability of a 1, as models with Bernoulli outputs want their images.

    v = 1 where noise < x / (levels - 1), else 0

Source: Salakhutdinov, Murray 2008 (ICML), whose binary MNIST it is; Kingma et al. 2014 draw anew for each epoch.
"""

import torch
from torch import Tensor

from fastflow.ops._checks import bad_dtype, bad_type
from fastflow.ops.dequantize import check_levels, check_noise


def binarize(x: Tensor, noise: Tensor | None = None, *, levels: int, dtype: torch.dtype | None = None) -> Tensor:
    """0.0 and 1.0 from grey levels 0 .. levels - 1.

    x      integers [B, ...]
    noise  of x's shape, uniform in [0, 1); None: 1/2, which rounds to the nearer of black and white
    dtype  of the result; by default the noise's, else the default dtype

    Raises TypeError or ValueError naming the argument, also, where looking costs nothing (on CPU), for a value out of
    range.
    """
    op = "binarize"
    if not isinstance(x, Tensor):
        raise bad_type(op, "x", x)
    if x.is_floating_point():
        raise bad_dtype(op, "x", x, "an integer dtype of grey levels")
    check_levels(op, x, levels)
    check_noise(op, x, noise)
    if dtype is None:
        dtype = torch.get_default_dtype() if noise is None else noise.dtype
    middle = 0.5 if noise is None else noise
    return (x.to(torch.float32) / (levels - 1) > middle).to(dtype)
