"""Small FlowGMMs, moved off their start, and data for them."""

import torch
from bijections import scatter
from torch import Tensor

from fastflow.models import FlowGMM

NET = {"hidden": 4, "blocks": 1}


def small_image(**options) -> FlowGMM:
    """8 x 8 images of 17 levels, 3 classes, in evaluation."""
    torch.manual_seed(0)
    model = FlowGMM.image((1, 8, 8), 17, 3, trunk=NET, **options)
    scatter(model.trunk, 0.05)
    return model.eval()


def small_toy(classes: int = 3, **options) -> FlowGMM:
    """Points of the plane, float64, in evaluation."""
    torch.manual_seed(0)
    model = FlowGMM.toy(classes, trunk={"hidden": 8}, **options).double()
    scatter(model.trunk, 0.2)
    return model.eval()


def images(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(17, (rows, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def points(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
