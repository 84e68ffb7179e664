"""normflows: permutations of the channels, and linear maps of them.

`forward` samples, which undoes the map that `inverse`, the density direction, applies:

    Invertible1x1Conv, InvertibleAffine    W z on every pixel, z W,   W = P L U or dense
    LULinearPermute                        L U z[:, permutation] + bias
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.fusion.layer import Arithmetic, Layer, digest, is_fused, keep, swap
from fastflow.fusion.linear import entries_to_factors, keep_entries, lu_linear, lu_product
from fastflow.ops._checks import COMPUTE_DTYPE
from fastflow.ops._define import without_autocast
from fastflow.ops.channel_map import ChannelMap, channel_map
from fastflow.ops.channel_mix import MOST_CHANNELS, map_channels
from fastflow.ops.invert import matrix_log_det
from fastflow.ops.permute import reordered

_FEW = 32  # channels below which PyTorch's own gradient of two inverses is as fast as that of solves


class Permute(Arithmetic):
    """Permute; log_det has PyTorch's default dtype, as in normflows."""

    def forward(self, z: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        if z.shape[1] != self.num_channels:
            return super().forward(z, context)
        return self._permuted(z, inverse=False)

    def inverse(self, z: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        if z.shape[1] != self.num_channels:
            return super().inverse(z, context)
        return self._permuted(z, inverse=True)

    def _permuted(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.mode == "shuffle":
            order = self.perm, self.inv_perm
            z = reordered(z, order[::-1] if inverse else order)
        else:
            first = (self.num_channels + inverse) // 2
            z = torch.cat(z.split([first, self.num_channels - first], 1)[::-1], 1)
        return z, torch.zeros(z.shape[0], device=z.device)


class Matrix(Arithmetic):
    """What Invertible1x1Conv and InvertibleAffine share: the matrix, made in full precision whatever autocast does.

    W is made as normflows makes it, which is quick; its inverse is of solves, or, dense, of one elimination.
    """

    def prepare(self) -> None:
        if self.use_lu:
            order = self.P.argmax(1)
            keep(self, "order", order)
            keep(self, "back", order.argsort())
            keep(self, "below", torch.ones_like(self.P, dtype=torch.bool).tril(-1))

    def _fused(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if torch.is_autocast_enabled(z.device.type):
            z = z.to(COMPUTE_DTYPE[z.dtype])
        with without_autocast(z):
            return self._mapped(z, inverse)

    def _matrix(self) -> tuple[Tensor, Tensor]:
        """W and log|det W|."""
        if self.use_lu:
            return self._assemble_W(), self.log_S.sum()
        return self.W, matrix_log_det(self.W.double()).to(self.W.dtype)

    def _inverse_matrix(self) -> tuple[Tensor, Tensor]:
        """W^-1 and log|det W^-1|."""
        if not self.use_lu:
            matrix, log_abs_det, *_ = channel_map(self.W, inverse=True)
            return matrix.to(self.W.dtype), log_abs_det.to(self.W.dtype)
        log_abs_det = -self.log_S.sum()
        if torch.is_grad_enabled() and self.num_channels < _FEW:
            return self._assemble_W(inverse=True), log_abs_det
        diagonal = self.sign_S * torch.exp(self.log_S)
        factors = torch.where(self._fused_below, self.L, self.U).diagonal_scatter(diagonal)
        matrix = lu_product(factors.to(COMPUTE_DTYPE[factors.dtype]), inverse=True)
        return reordered(matrix, (self._fused_order, self._fused_back)).to(factors.dtype), log_abs_det


class Convolution(Matrix):
    """Invertible1x1Conv."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, inverse=True)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, inverse=False)

    def _mapped(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if z.dim() != 4 or z.shape[1] != self.num_channels:
            return super().forward(z) if inverse else super().inverse(z)
        matrix, log_abs_det = self._inverse_matrix() if inverse else self._matrix()
        pixels = z.shape[2] * z.shape[3]
        if _pays(z, pixels):
            mapped, _ = map_channels(z, ChannelMap(matrix, matrix.new_zeros(())))
        else:
            mapped = F.conv2d(z, matrix[:, :, None, None])
        return mapped, log_abs_det * pixels


def _pays(z: Tensor, pixels: int) -> bool:
    """Whether the kernel is faster than a convolution."""
    return z.shape[1] <= MOST_CHANNELS and pixels >= 16 and (torch.compiler.is_compiling() or z.numel() >= 4096)


class Affine(Matrix):
    """InvertibleAffine."""

    def forward(self, z: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        return self._fused(z, inverse=True)

    def inverse(self, z: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        if torch.is_autocast_enabled(z.device.type):
            return self._fused(z, inverse=False)
        return super().inverse(z)

    def _mapped(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if not inverse:
            return super().inverse(z)
        matrix, log_det = self._inverse_matrix()
        return z @ matrix, log_det


class _Triangular(Arithmetic):
    """_LULinear, which LULinearPermute calls: it knows where its entries belong."""

    def prepare(self) -> None:
        keep_entries(self)


class _Permutation(Arithmetic):
    """_RandomPermutation, which LULinearPermute calls: it knows its inverse."""

    def prepare(self) -> None:
        keep(self, "back", self._permutation.argsort())


class PermutedLinear(Arithmetic):
    """LULinearPermute."""

    replaces = ("permutation", "linear")

    def prepare(self) -> None:
        for part, arithmetic in ((self.permutation, _Permutation), (self.linear, _Triangular)):
            if not is_fused(part):
                swap(part, arithmetic)

    def forward(self, z: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        return self._fused(z, inverse=True) if self._fits(z) else super().forward(z, context)

    def inverse(self, z: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        return self._fused(z, inverse=False) if self._fits(z) else super().inverse(z, context)

    def _fits(self, z: Tensor) -> bool:
        linear = self.linear
        return z.dim() == 2 and z.shape[1] == linear.features and (linear.training or not linear.using_cache)

    def _fused(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        linear, permutation = self.linear, self.permutation
        factors, log_abs_det = entries_to_factors(linear, COMPUTE_DTYPE[z.dtype])
        return lu_linear(z, factors, log_abs_det, linear.bias, inverse=inverse,
                         order=(permutation._permutation, permutation._fused_back))


def _is_permutation(indices: Tensor, back: Tensor | None = None) -> bool:
    each = torch.arange(len(indices), device=indices.device)
    back = indices.argsort() if back is None else back
    return torch.equal(indices.sort().values, each) and torch.equal(indices[back], each)


def _of_permute(layer: nn.Module) -> str:
    if layer.mode == "swap":
        return ""
    if layer.mode != "shuffle":
        return f"its mode is {layer.mode!r}"
    return "" if _is_permutation(layer.perm, layer.inv_perm) else "its perm and inv_perm do not undo each other"


def _of_matrix(layer: nn.Module) -> str:
    if not layer.use_lu:
        return ""
    ones = torch.zeros_like(layer.P).scatter_(1, layer.P.argmax(1)[:, None], 1)
    usual = torch.equal(layer.P, ones) and _is_permutation(layer.P.argmax(1))
    return "" if usual else "its P is not a permutation"


def _of_permuted_linear(layer: nn.Module) -> str:
    if digest(type(layer.linear), _LINEAR_CODE) != "9d597bae0539" or (
            digest(type(layer.permutation), _PERMUTATION_CODE) != "b88903b93ce0"):
        return "the code of its parts is not that of a known normflows release"
    permutation = layer.permutation
    usual = permutation._dim == 1 and len(permutation._permutation) == layer.linear.features and (
        _is_permutation(permutation._permutation))
    return "" if usual else "its permutation is not one of the features"


_CODE, _MATRIX_CODE = ("forward", "inverse"), ("forward", "inverse", "_assemble_W")
_LINEAR_CODE = ("forward", "inverse", "forward_no_cache", "inverse_no_cache", "_create_lower_upper", "upper_diag",
                "logabsdet")
_PERMUTATION_CODE = ("forward", "inverse", "_permute", "_inverse_permutation")
LAYERS = (
    Layer("normflows", "Permute", Permute, _CODE, ("59fa5d608f6a",), _of_permute, "mode shuffle and swap"),
    Layer("normflows", "Invertible1x1Conv", Convolution, _MATRIX_CODE, ("d894f7dc8919",), _of_matrix,
          "LU and dense, any number of channels"),
    Layer("normflows", "InvertibleAffine", Affine, _MATRIX_CODE, ("d936d6a25630",), _of_matrix,
          "LU and dense, any number of channels and leading dims"),
    Layer("normflows", "LULinearPermute", PermutedLinear, _CODE, ("ed64f19dc45e",), _of_permuted_linear,
          "any number of features; with the cache as in normflows"),
)
