"""nflows: linear layers, dense and by triangular factors, and the invertible 1x1 convolution.

In eval mode with `using_cache` the matrix, its inverse and log|det| are those that the first call made, as in nflows,
until `train` forgets them.
"""

import torch
from torch import Tensor, nn

from fastflow.fusion.layer import Arithmetic, Layer, anything, digest, is_fused, swap
from fastflow.fusion.linear import by_matrix, entries_to_factors, keep_entries, lu_linear, lu_product, pays
from fastflow.fusion.nflows import permutations
from fastflow.ops._checks import COMPUTE_DTYPE
from fastflow.ops.channel_map import channel_map
from fastflow.ops.channel_mix import MOST_CHANNELS
from fastflow.ops.invert import matrix_log_det
from fastflow.ops.permute import Order


class Linear(Arithmetic):
    """The directions of both kinds, and their cache."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 2:  # nflows takes the last dim of any input for the features
            return super().forward(inputs, context)
        return self._fused(inputs, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 2:
            return super().inverse(inputs, context)
        return self._fused(inputs, inverse=True)

    def _fused(self, x: Tensor, inverse: bool, order: Order | None = None) -> tuple[Tensor, Tensor]:
        if self.training or not self.using_cache:
            return self._computed(x, inverse, order)
        if inverse:
            self._check_inverse_cache()
        else:
            self._check_forward_cache()
        cache = self.cache
        return by_matrix(x, cache.inverse if inverse else cache.weight, cache.logabsdet, self.bias, order=order,
                         inverse=inverse)


class Triangular(Linear):
    """LULinear: z = L U x + bias."""

    def prepare(self) -> None:
        keep_entries(self)

    def _computed(self, x: Tensor, inverse: bool, order: Order | None) -> tuple[Tensor, Tensor]:
        factors, log_abs_det = entries_to_factors(self, COMPUTE_DTYPE[x.dtype])
        return lu_linear(x, factors, log_abs_det, self.bias, order=order, inverse=inverse)

    def weight(self) -> Tensor:
        return self._product(inverse=False)

    def weight_inverse(self) -> Tensor:
        return self._product(inverse=True)

    def _product(self, inverse: bool) -> Tensor:
        factors, _ = entries_to_factors(self, COMPUTE_DTYPE[self.bias.dtype])
        return lu_product(factors, inverse).to(self.bias.dtype)


class Convolution(Triangular):
    """OneByOneConvolution: a permutation of the channels and LULinear on each pixel, as one matrix."""

    replaces = ("permutation",)

    def prepare(self) -> None:
        super().prepare()
        if not is_fused(self.permutation):  # so that it knows its inverse, also after it loaded another
            swap(self.permutation, permutations.Permutation)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._on_pixels(inputs, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._on_pixels(inputs, inverse=True)

    def _on_pixels(self, inputs: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 4:
            raise ValueError("Inputs must be a 4D tensor.")
        return self._fused(inputs, inverse, (self.permutation._permutation, self.permutation._fused_back))


class Dense(Linear):
    """NaiveLinear: z = W x + bias."""

    def _computed(self, x: Tensor, inverse: bool, order: None) -> tuple[Tensor, Tensor]:
        weight, dtype = self._weight.to(COMPUTE_DTYPE[x.dtype]), x.dtype
        if not inverse:
            return by_matrix(x, weight, _log_abs_det(weight), self.bias)
        if dtype != torch.float64 and (self.features <= MOST_CHANNELS or pays(x, inverse)):
            inverted, log_abs_det, *_ = channel_map(weight, inverse=True)
            return by_matrix(x, inverted, -log_abs_det, self.bias, inverse=True)
        z = torch.linalg.solve_ex(weight, (x - self.bias).to(weight.dtype).mT).result.mT
        return z.to(dtype), -_log_abs_det(weight) * weight.new_ones(x.shape[0])

    def weight_inverse_and_logabsdet(self) -> tuple[Tensor, Tensor]:
        inverted, log_abs_det, *_ = channel_map(self._weight, inverse=True)
        return inverted.to(self._weight.dtype), -log_abs_det.to(self._weight.dtype)


def _log_abs_det(weight: Tensor) -> Tensor:
    if len(weight) <= MOST_CHANNELS:
        return matrix_log_det(weight.double()).to(weight.dtype)
    return torch.linalg.slogdet(weight).logabsdet


def _permutes_oddly(layer: nn.Module) -> str:
    part = layer.permutation
    known = digest(type(part), permutations.CODE) in permutations.DIGESTS and part._dim == 1
    usual = known and part._permutation.sort().values.tolist() == list(range(layer.features))
    return "" if usual else "its permutation is none of the channels"


_CODE = ("forward", "inverse", "forward_no_cache", "inverse_no_cache", "weight", "weight_inverse", "logabsdet",
         "weight_and_logabsdet", "weight_inverse_and_logabsdet", "_check_forward_cache", "_check_inverse_cache")
_LU_CODE = (*_CODE, "_create_lower_upper", "upper_diag")
LAYERS = (
    Layer("nflows", "LULinear", Triangular, _LU_CODE, ("de5543f93304", "ea4c4be3dd42"), anything,
          "any number of features, the cache"),
    Layer("nflows", "OneByOneConvolution", Convolution, (*_LU_CODE, "_lu_forward_inverse"),
          ("23b0dbc89991", "f833e31d15e0"), _permutes_oddly, "any number of channels, the cache"),
    Layer("nflows", "NaiveLinear", Dense, _CODE, ("e14f7f9399c7", "4ccfb1f7dc79"), anything,
          "any number of features, the cache"),
)
