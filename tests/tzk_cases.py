"""Small TzK models whose densities and samples stay within reach of a grid."""

import copy

import torch
from bijections import scatter
from torch import Tensor

from fastflow.models import TzK, tzk_trunk
from fastflow.nn import ElementwiseAffine


def plane(steps: int = 1, types: tuple[str, ...] = ("a", "b"), **options) -> TzK:
    """A scattered float64 model of points in the plane, whose classes are all its types."""
    model = TzK(tzk_trunk((2,), steps=steps, alpha=None), 1, types, steps=1, hidden=8, **options)
    calm = [copy.deepcopy(knowledge.style_given_data.flow.state_dict()) for knowledge in model.knowledge.values()]
    for flow in (model.trunk, *(knowledge.data_given_style.flow for knowledge in model.knowledge.values())):
        for layer in flow.layers:
            if isinstance(layer, ElementwiseAffine):
                torch.nn.init.zeros_(layer.log_scale)  # SymLogs that bend
    scatter(model, 0.2)
    with torch.no_grad():  # narrow latents: the inverse of SymLog stretches far ones exponentially
        model.base.rho.fill_(-0.8)
        for knowledge, state in zip(model.knowledge.values(), calm, strict=True):
            knowledge.data_given_style.flow.layers[-1].log_scale.add_(1.3)
            knowledge.style_given_data.flow.load_state_dict(state)  # values of a tenth, which 0.2 would bury
            scatter(knowledge.style_given_data.flow, 0.02)
    return model.double()


def points(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(rows: int = 16, scattered: float = 0.02, **options) -> tuple[TzK, Tensor, Tensor]:
    """A started, scattered model of 8 x 8 images with 17 levels, a type of the set and two classes; x and noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(17, (rows, 1, 8, 8), generator=generator, dtype=torch.uint8)
    noise = torch.rand(x.shape, generator=generator)
    model = TzK.build((1, 8, 8), 17, ["zero", "one"], types=["digits"], **{"steps": 2, "hidden": 8} | options)
    model.initialize(x, noise=noise)
    return scatter(model, scattered), x, noise


def grid(reach: float, points: int) -> tuple[Tensor, float]:
    """([points^2, 2] of the square [-reach, reach]^2, the area of each), float64."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2
