"""A small SCNF and images for it."""

import torch
from bijections import scatter
from torch import Tensor

from fastflow.models import SCNF
from fastflow.ops import uniform_noise


def small(**options) -> SCNF:
    """A started, scattered model of 8 x 8 images: 2 scales, 3 classes."""
    sizes = {"trunk": "conv", "scales": 2, "masked_steps": 1, "channel_steps": 1, "hidden": 6, "blocks": 1,
             "head_levels": 2, "head_steps": 1, "head_hidden": 6, "head_blocks": 1}
    model = SCNF.glow((1, 8, 8), 17, 3, **sizes | options)
    model.initialize(*batch(16)[:1], noise=batch(16)[1])
    return scatter(model, 0.05)


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randint(17, (rows, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return x, uniform_noise(x.shape, seed=seed, step=0, rows=torch.arange(rows))
