"""The base distribution: independent normals with learned scales."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.ops._checks import compute_dtype


class DiagonalNormal(nn.Module):
    """N(0, diag(scale^2)) on [B, features], scale = softplus(rho), rho learned and 0 at first (scale ln 2).

    learn_scale=False fixes scale at 1: the standard normal of the paper, where the published SCNF code learns it.
    log-densities are float32 (float64 for float64 z), in nats. Source: Atanov et al. 2019 (SCNF, arXiv 1905.00505).
    """

    def __init__(self, features: int, learn_scale: bool = True) -> None:
        super().__init__()
        self.features = features
        self.register_parameter("rho", nn.Parameter(torch.zeros(features)) if learn_scale else None)

    def log_prob(self, z: Tensor) -> Tensor:
        """[B] log-density of z [B, features]."""
        if z.dim() != 2 or z.shape[1] != self.features:
            raise ValueError(f"DiagonalNormal: z has shape {tuple(z.shape)}, expected (B, {self.features})")
        z = z.to(compute_dtype(z))
        energy = 0.5 * math.log(2 * math.pi) * self.features
        if self.rho is None:
            return -0.5 * z.square().sum(1) - energy
        scale = F.softplus(self.rho)
        return -0.5 * (z / scale).square().sum(1) - scale.log().sum() - energy

    def sample(self, rows: int, temperature: float = 1.0, generator: torch.Generator | None = None,
               like: Tensor | None = None) -> Tensor:
        """[rows, features] draws, the scales multiplied by `temperature`; dtype and device of rho, or of `like`."""
        like = self.rho if like is None else like
        options = {} if like is None else {"dtype": like.dtype, "device": like.device}
        z = temperature * torch.randn(rows, self.features, generator=generator, **options)
        return z if self.rho is None else z * F.softplus(self.rho)

    def extra_repr(self) -> str:
        return f"{self.features}, learn_scale={self.rho is not None}"
