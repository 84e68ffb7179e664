"""nflows: permutations of one dim, and squeeze."""

import torch
from torch import Tensor

from fastflow.fusion.layer import Arithmetic, Layer, anything, keep
from fastflow.ops._checks import COMPUTE_DTYPE


class Permutation(Arithmetic):
    """Permutation, RandomPermutation and ReversePermutation: the inverse is known, and a reversal reads in order."""

    def prepare(self) -> None:
        indices = self._permutation
        keep(self, "back", indices.argsort())
        keep(self, "reverses", torch.equal(indices, torch.arange(len(indices) - 1, -1, -1).to(indices)))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._reordered(inputs, self._permutation)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._reordered(inputs, self._fused_back)

    def _reordered(self, inputs: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        dim = self._dim
        if dim >= inputs.dim():
            raise ValueError(f"No dimension {dim} in inputs.")
        if inputs.shape[dim] != len(indices):
            raise ValueError(f"Dimension {dim} in inputs must be of size {len(indices)}.")
        return inputs.flip(dim) if self._fused_reverses else inputs.index_select(dim, indices), _zeros(inputs)


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


CODE, DIGESTS = ("forward", "inverse", "_permute", "_inverse_permutation"), ("0f81637787fa",)
LAYERS = (
    *(Layer("nflows", name, Permutation, CODE, DIGESTS, anything, "any dim")
      for name in ("Permutation", "RandomPermutation", "ReversePermutation")),
    Layer("nflows", "SqueezeTransform", Squeeze, ("forward", "inverse"), ("b1603ad23afc",), anything, "any factor"),
)
