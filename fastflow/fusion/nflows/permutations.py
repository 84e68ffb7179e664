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
        flips = self._fused_reverses and dim == inputs.dim() - 1  # of other dims a selection takes as long
        return inputs.flip(dim) if flips else inputs.index_select(dim, indices), zeros(inputs)


class Squeeze(Arithmetic):
    """SqueezeTransform, which undoes odd factors too: nflows asks for a multiple of 4 channels whatever the factor.

    The result is contiguous, as in nflows. `ops.squeeze` keeps channels last, which a caller's view would stop at.
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_image(inputs)
        factor, (rows, channels, height, width) = self.factor, inputs.shape
        if height % factor or width % factor:
            raise ValueError("Input image size not compatible with the factor.")
        height, width = height // factor, width // factor
        pixels = inputs.reshape(rows, channels, height, factor, width, factor).permute(0, 1, 3, 5, 2, 4)
        return pixels.reshape(rows, channels * factor**2, height, width), zeros(inputs)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_image(inputs)
        factor, (rows, channels, height, width) = self.factor, inputs.shape
        if channels < factor**2 or channels % factor**2:
            raise ValueError("Invalid number of channel dimensions.")
        channels = channels // factor**2
        pixels = inputs.reshape(rows, channels, factor, factor, height, width).permute(0, 1, 4, 2, 5, 3)
        return pixels.reshape(rows, channels, height * factor, width * factor), zeros(inputs)


def _check_image(inputs: Tensor) -> None:
    if inputs.dim() != 4:
        raise ValueError("Expecting inputs with 4 dimensions")


def zeros(inputs: Tensor) -> Tensor:
    """The log_det [B] of what keeps volumes; inputs may be integers too."""
    return inputs.new_zeros(inputs.shape[0], dtype=COMPUTE_DTYPE.get(inputs.dtype, inputs.dtype))


CODE, DIGESTS = ("forward", "inverse", "_permute", "_inverse_permutation"), ("0f81637787fa",)
LAYERS = (
    *(Layer("nflows", name, Permutation, CODE, DIGESTS, anything, "any dim")
      for name in ("Permutation", "RandomPermutation", "ReversePermutation")),
    Layer("nflows", "SqueezeTransform", Squeeze, ("forward", "inverse"), ("b1603ad23afc",), anything, "any factor"),
)
