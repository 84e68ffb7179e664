"""FrEIA: permutations and linear maps of the channels."""

import math

import torch
from torch import Tensor, nn

from fastflow.fusion.freia.channels import mixed, permuted, reflections
from fastflow.fusion.layer import Arithmetic, Layer, anything
from fastflow.ops._define import without_autocast


class Permuted(Arithmetic):
    """PermuteRandom; log_det is the number 0."""

    def forward(self, x, rev=False, jac=True):
        order, back = (self.perm_inv, self.perm) if rev else (self.perm, self.perm_inv)
        return [permuted(x[0], order, back)], 0.0


class Linear(Arithmetic):
    """FixedLinearTransform: y = x M + b, M being the transpose of what the constructor takes."""

    def forward(self, x, rev=False, jac=True):
        x, b, log_det = x[0], self.b, self.logDetM.expand(x[0].shape[0])
        with without_autocast(x):
            if rev:
                return ((x - b if isinstance(b, Tensor) else x).mm(self.M_inv),), -log_det
            return (torch.addmm(b, x, self.M) if isinstance(b, Tensor) else x.mm(self.M),), log_det


class Convolution(Arithmetic):
    """Fixed1x1Conv; log_det []."""

    def forward(self, x, rev=False, jac=True):
        x = x[0]
        log_det = self.logDetM * math.prod(x.shape[2:])
        matrix = self.M_inv if rev else self.M
        return (mixed(x, matrix.flatten(1)),), -log_det if rev else log_det


class Orthogonal(Arithmetic):
    """OrthogonalTransform: y = (x W + b) exp(s), as x (W exp(s)) + b exp(s)."""

    def forward(self, x, rev=False, jac=True):
        x, log_scale = x[0], self._log_e(self.scaling)
        log_det = log_scale.sum(1).expand(x.shape[0])
        with without_autocast(x):
            if rev:
                return [torch.addcmul(-self.bias, x, torch.exp(-log_scale)).mm(self.weights.t())], -log_det
            scale = torch.exp(log_scale)
            return [torch.addmm(self.bias * scale, x, self.weights * scale)], log_det


class Reflected(Arithmetic):
    """HouseholderPerm: y = x W, W = H_1 ... H_n = I - V^T T V, without W; log_det is the number 0."""

    def forward(self, x, c=(), rev=False, jac=True):
        x = x[0]
        with without_autocast(x):
            if self.fixed:
                return [x.mm(self.W.t() if rev else self.W)], 0.0
            vectors, combined = (each.to(x.dtype) for each in reflections(self.Vs))
            first, second = (combined, vectors) if rev else (vectors, combined)
            return [torch.addmm(x, x.mm(first.t()), second, alpha=-1)], 0.0


def _no_permutation(layer: nn.Module) -> str:
    return "" if torch.equal(layer.perm.argsort(), layer.perm_inv) else "its perm_inv does not undo its perm"


def _other_product(layer: nn.Module) -> str:
    """Refuses a condition, and a release whose product of the reflections, no method of the class, is another."""
    if layer.conditional:
        return "its vectors are a condition, for which the layer itself fails"
    if layer.fixed:
        return ""
    with torch.no_grad():
        unit = torch.eye(layer.width).to(layer.Vs)
        (product,), _ = layer.forward([unit])
        vectors, combined = (each.to(unit) for each in reflections(layer.Vs))
    same = torch.allclose(product, unit - vectors.T @ combined, atol=1e-3)
    return "" if same else "its reflections are not multiplied in order"


LAYERS = (
    Layer("FrEIA", "PermuteRandom", Permuted, ("forward",), ("074cb93545be",), _no_permutation, "any input"),
    Layer("FrEIA", "FixedLinearTransform", Linear, ("forward",), ("2a789ab6fbce",), anything, "with and without b"),
    Layer("FrEIA", "Fixed1x1Conv", Convolution, ("forward",), ("e9feb6b4dd4a",), anything, "any matrix"),
    Layer("FrEIA", "OrthogonalTransform", Orthogonal, ("forward", "_log_e"), ("58645514ed6d",), anything,
          "any clamp; the correction of its weights stays"),
    Layer("FrEIA", "HouseholderPerm", Reflected, ("forward",), ("9908a51246a5",), _other_product, "learned and fixed"),
)
