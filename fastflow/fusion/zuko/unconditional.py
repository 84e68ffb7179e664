"""zuko: linear maps and permutations of the features, whose parameters are an UnconditionalTransform's arguments."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Transform

from fastflow.fusion.layer import Arithmetic, Layer, keep
from fastflow.fusion.linear import lu_product, pays
from fastflow.fusion.zuko.functional import Bijection, check_features, functional, in_rows, is_known, out_of_rows
from fastflow.ops._checks import compute_dtype
from fastflow.ops._define import without_autocast
from fastflow.ops.permute import reordered


class LazyUnconditional(Arithmetic):
    """UnconditionalTransform of a matrix or an order of the features."""

    def prepare(self) -> None:
        mixin = _mixin(self.f)
        keep(self, "functional", functional(mixin, self.f))
        keep(self, "back", _argument(self).argsort() if mixin is Permutation else None)

    def forward(self, c: Tensor | None = None) -> Transform:
        transform = self._fused_functional(*self.args, **self.kwargs)
        transform.back = self._fused_back
        return transform


class Rows(Bijection):
    """A bijection of single rows: `map_rows` gets x [rows, features]."""

    def map(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_features(type(self).__name__, x, self.features)
        leading = x.shape[:-1]
        return out_of_rows(*self.map_rows(in_rows(x, leading), inverse), leading)


class LULinear(Rows):
    """LULinearTransform: z = L U x; the ones are on the diagonal of U."""

    def __init__(self, LU: Tensor) -> None:
        Transform.__init__(self)
        self.factors, self.features = LU, LU.shape[0]

    @property
    def L(self) -> Tensor:
        return self.factors.tril()

    @property
    def U(self) -> Tensor:
        return self.factors.triu(1) + torch.eye(self.features, dtype=self.factors.dtype, device=self.factors.device)

    def map_rows(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        factors = self.factors
        log_det = factors.diagonal().to(compute_dtype(x)).abs().log().sum().expand(x.shape[0])
        with without_autocast(x):
            if not inverse:
                lower = self.L
                return F.linear(x, torch.addmm(lower, lower, factors.triu(1))), log_det
            if pays(x, inverse):  # of the transpose, U^T L^T, the first factor has the ones
                return F.linear(x, lu_product(factors.mT, inverse=True).mT), -log_det
        z = torch.linalg.solve_triangular(factors, x.mT, upper=False)
        return torch.linalg.solve_triangular(factors, z, upper=True, unitriangular=True).mT, -log_det


class Rotation(Rows):
    """RotationTransform: z = R x, R orthogonal."""

    def __init__(self, A: Tensor) -> None:
        with without_autocast(A):
            super().__init__(A)
        self.features = A.shape[0]

    def map_rows(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        with without_autocast(x):
            return F.linear(x, self.R.mT if inverse else self.R), x.new_zeros(x.shape[0])


class Permutation(Rows):
    """PermutationTransform, whose layer knows the inverse order."""

    def __init__(self, order: Tensor) -> None:
        super().__init__(order)
        self.features = order.shape[0]

    def map_rows(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        order = (self.back, self.order) if inverse else (self.order, self.back)
        return reordered(x, order), x.new_zeros(x.shape[0])


_CODES = {"6f25ef347131": LULinear, "eb68cf46099d": Rotation, "fb8df30c677e": Permutation}


def _mixin(function: object) -> type[Rows] | None:
    return next((mixin for code, mixin in _CODES.items() if is_known(function, code)), None)


def _argument(layer: nn.Module) -> object:
    """The matrix, or the order; None where it is not the only argument."""
    arguments = [*layer.args, *layer.kwargs.values()]
    return arguments[0] if len(arguments) == 1 else None


def _refuses(layer: nn.Module) -> str:
    mixin, argument = _mixin(layer.f), _argument(layer)
    if mixin is None:
        return f"its transform is {getattr(layer.f, '__name__', type(layer.f).__name__)}"
    if not isinstance(argument, Tensor):
        return f"its transform has other arguments than {'an order' if mixin is Permutation else 'a matrix'}"
    if mixin is not Permutation:
        square = argument.dim() == 2 and argument.shape[0] == argument.shape[1]
        return "" if square else f"its matrix has shape {tuple(argument.shape)}, expected one square matrix"
    if argument.dim() != 1 or not argument.sort().values.equal(torch.arange(len(argument), device=argument.device)):
        return "its order is not that of a permutation"
    return ""


LAYERS = (
    Layer("zuko", "UnconditionalTransform", LazyUnconditional, ("forward", "args", "kwargs"), ("c0705ad1b9de",),
          _refuses, "LULinearTransform, RotationTransform and PermutationTransform, any leading dims"),
)
