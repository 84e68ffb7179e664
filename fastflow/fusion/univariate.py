"""z = x c(a) + t of single features, as a network's output tells it to autoregressive layers."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastflow.ops.affine_coupling import affine_coupling, affine_coupling_packed
from fastflow.ops.scale_map import ScaleMap, log_scale_slope, scale_of


class Univariate(NamedTuple):
    """The parameters of a feature lie next to each other: t at `shift_index`, a at the other place."""

    scale_map: ScaleMap
    shift_index: int = 0

    @property
    def parameters(self) -> int:
        return 1 if self.scale_map.kind == "additive" else 2

    def __call__(self, x: Tensor, made: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """(z, log_det) of x [B, features] and a network's output [B, features * parameters]; or the inverse."""
        if self.parameters == 1:
            return affine_coupling(x, None, made, scale_map=self.scale_map, inverse=inverse)
        packing = "scale_shift_interleaved" if self.shift_index else "shift_scale_interleaved"
        return affine_coupling_packed(x, made, packing=packing, scale_map=self.scale_map, inverse=inverse)

    def invert(self, z: Tensor, scale: Tensor | None, shift: Tensor) -> Tensor:
        """x of z, a and t of any one shape."""
        return affine_coupling(z, scale, shift, scale_map=self.scale_map, inverse=True)[0]

    def split(self, made: Tensor) -> tuple[Tensor | None, Tensor]:
        """(a, t) [features, B] of a network's output [features * parameters, B]; a is None if there is none."""
        parts = made.view(-1, self.parameters, made.shape[1]).unbind(1)
        return None if len(parts) == 1 else parts[1 - self.shift_index], parts[self.shift_index]

    def slopes(self, x: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """Of x = (z - t) / c, the derivatives by z [features, B] and by the parameters [features, parameters, B]."""
        scale, _ = self.split(made)
        if scale is None:
            return torch.ones_like(x), torch.full_like(x, -1.0)[:, None]
        settings = self.scale_map.index, self.scale_map.bias, self.scale_map.eps, self.scale_map.clamp
        by_z = 1 / scale_of(scale, None, *settings)[0]
        by_scale = -x * log_scale_slope(scale, None, *settings)
        return by_z, torch.stack((by_scale, -by_z) if self.shift_index else (-by_z, by_scale), 1)
