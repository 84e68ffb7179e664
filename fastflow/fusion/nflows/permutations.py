"""nflows: permutations of one dim, and squeeze."""

import torch
from torch import Tensor, nn

from fastflow.fusion.layer import Arithmetic, Layer, anything, digest, keep
from fastflow.fusion.linear import reordered
from fastflow.ops._checks import COMPUTE_DTYPE


class Permutation(Arithmetic):
    """Permutation, RandomPermutation and ReversePermutation: the inverse is known and the gradient a selection."""

    def prepare(self) -> None:
        keep(self, "back", self._permutation.argsort())

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._reordered(inputs, self._permutation, self._fused_back)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._reordered(inputs, self._fused_back, self._permutation)

    def _reordered(self, inputs: Tensor, there: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        dim = self._dim
        if dim >= inputs.dim():
            raise ValueError(f"No dimension {dim} in inputs.")
        if inputs.shape[dim] != len(there):
            raise ValueError(f"Dimension {dim} in inputs must be of size {len(there)}.")
        return reordered(inputs, (there, back), dim), _zeros(inputs)


class Squeeze(Arithmetic):
    """SqueezeTransform: nflows' own, but for the inverse, which it refuses for factors that 4 is no multiple of."""

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 4:
            raise ValueError("Expecting inputs with 4 dimensions")
        factor, (rows, channels, height, width) = self.factor, inputs.shape
        if channels < factor**2 or channels % factor**2:
            raise ValueError("Invalid number of channel dimensions.")
        pixels = inputs.reshape(rows, channels // factor**2, factor, factor, height, width).permute(0, 1, 4, 2, 5, 3)
        return pixels.reshape(rows, channels // factor**2, height * factor, width * factor), _zeros(inputs)


def _zeros(inputs: Tensor) -> Tensor:
    return inputs.new_zeros(inputs.shape[0], dtype=COMPUTE_DTYPE.get(inputs.dtype, inputs.dtype))


def is_permutation(layer: nn.Module) -> bool:
    """Whether the layer has the code of nflows' permutations and its indices are each of those of the dim once."""
    indices = layer._permutation
    return digest(type(layer), _CODE) in _DIGESTS and torch.equal(indices.sort().values, torch.arange(
        len(indices), dtype=indices.dtype, device=indices.device))


def _refuses(layer: nn.Module) -> str:
    return "" if is_permutation(layer) else "its permutation leaves out an index"


_CODE, _DIGESTS = ("forward", "inverse", "_permute", "_inverse_permutation"), ("0f81637787fa",)
LAYERS = (
    *(Layer("nflows", name, Permutation, _CODE, _DIGESTS, _refuses, "any dim")
      for name in ("Permutation", "RandomPermutation", "ReversePermutation")),
    Layer("nflows", "SqueezeTransform", Squeeze, ("forward", "inverse"), ("b1603ad23afc",), anything, "any factor"),
)
