"""normflows: the masked affine flow of RealNVP.

    z' = b z + (1 - b) (z e^s + t)                inverse  z = b z' + (1 - b) (z' - t) e^-s

with s and t of b z, at full width. Where s or t is not finite, z' and log_det are NaN, where b = 1 too.
"""

import torch
from torch import Tensor, nn

from fastflow.fusion.layer import Arithmetic, Layer, keep
from fastflow.ops.affine_coupling import affine_coupling
from fastflow.ops.scale_map import ScaleMap

_EXP = ScaleMap("exp")


class MaskedAffine(Arithmetic):
    """MaskedAffineFlow."""

    def prepare(self) -> None:
        keep(self, "binary", _is_binary(self.b))
        keep(self, "mask", self.b.to(torch.get_default_dtype(), copy=True))
        keep(self, "zero", torch.zeros_like(self._fused_mask[(0,) * self.b.dim()]))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, inverse=True)

    def _fused(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        given = self.b * z
        if not self._fused_binary or not 2 <= self.b.dim() <= 5 or (
                z.dim() != self.b.dim() or given.shape != z.shape or given.dtype != z.dtype):
            return super().inverse(z) if inverse else super().forward(z)
        s, t = self._masked(self.s, given), self._masked(self.t, given)
        if s is None:
            return z - t if inverse else z + t, z.new_zeros(z.shape[0])
        t = self._fused_zero.to(s.dtype).expand_as(s) if t is None else t
        return affine_coupling(z, s, t, scale_map=_EXP, inverse=inverse)

    def _masked(self, net: object, given: Tensor) -> Tensor | None:
        """(1 - b) times what the net makes, or NaN where that is not finite; None for no net."""
        if net is torch.zeros_like:
            return None
        # Both ends' differences, the infinity or NaN of one end among them, are multiplied by b or 1 - b and added.
        made = torch.lerp(*(each.to(given.dtype) for each in (net(given), self._fused_zero, self._fused_mask)))
        return made if made.shape == given.shape else made.expand(given.shape)


def _is_binary(mask: Tensor) -> bool:
    return bool(((mask == 0) | (mask == 1)).all())


def _of_masked(layer: nn.Module) -> str:
    if layer.s is torch.zeros_like and layer.t is torch.zeros_like:
        return "it has neither s nor t"
    return "" if _is_binary(layer.b) else "its mask has values other than 0 and 1"


LAYERS = (
    Layer("normflows", "MaskedAffineFlow", MaskedAffine, ("forward", "inverse"), ("944ca2b2ea63",), _of_masked,
          "any mask of 0 and 1, s and t or one of them"),
)
