"""normflows: base distributions that are Gaussians or mixtures of them."""

import math

import torch
from torch import Tensor

from fastflow.fusion import mixture
from fastflow.fusion.layer import Arithmetic, Layer, anything, keep
from fastflow.ops._checks import check_labels


class GaussianMixture(Arithmetic):
    """GaussianMixture: no [B, K, D] is stored; samples are those of the original for the same seed."""

    def forward(self, num_samples: int = 1) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(self.weight_scores, 1)
        mode = torch.multinomial(weights[0], num_samples, replacement=True)
        noise = torch.randn(num_samples, self.dim, dtype=self.loc.dtype, device=self.loc.device)
        scale, shift = (each.squeeze(0).index_select(0, mode) for each in (torch.exp(self.log_scale), self.loc))
        z = noise * scale + shift
        return z, self.log_prob(z)

    def log_prob(self, z: Tensor) -> Tensor:
        log_weights = torch.log_softmax(self.weight_scores, 1)
        return mixture.log_prob(z, self.loc.squeeze(0), self.log_scale.squeeze(0), log_weights.squeeze(0))


class Gaussian(Arithmetic):
    """DiagGaussian, the mixture of one."""

    def prepare(self) -> None:
        keep(self, "log_weights", torch.zeros(1, device=self.loc.device))

    def log_prob(self, z: Tensor, context: object = None) -> Tensor:
        if z.dim() < 2 or z.shape[1:] != self.shape:  # what broadcasts, the original knows
            return super().log_prob(z, context)
        log_p = mixture.log_prob(z.flatten(1), self.loc.flatten(1), _annealed(self).flatten(1), self._fused_log_weights)
        return log_p.clone() if log_p.requires_grad else log_p  # which the kernel keeps, and callers add to in place


class ClassGaussian(Arithmetic):
    """ClassCondDiagGaussian: no [B, D] means and scales of the rows' classes are stored. Classes given by weights [B,
    K], which average parameters, stay with the original."""

    def prepare(self) -> None:
        keep(self, "log_prior", torch.zeros(self.num_classes, device=self.loc.device))

    def log_prob(self, z: Tensor, y: Tensor) -> Tensor:
        if z.dim() < 2 or z.shape[1:] != self.shape or y.dim() != 1:
            return super().log_prob(z, y)
        check_labels("ClassCondDiagGaussian", "y", y, z.shape[0], self.num_classes, unlabelled=False)
        parameters = (each.flatten(0, -2).t() for each in (self.loc, _annealed(self)))
        return mixture.log_prob(z.flatten(1), *parameters, self._fused_log_prior, y.long())


def _annealed(gaussian) -> Tensor:
    """The log scale at the temperature of annealed sampling."""
    if gaussian.temperature is None:
        return gaussian.log_scale
    return gaussian.log_scale + math.log(gaussian.temperature)


_CODE = ("forward", "log_prob")
LAYERS = (
    Layer("normflows", "GaussianMixture", GaussianMixture, _CODE, ("ccf0511da3a0",), anything,
          "log_prob and samples, parameters trained or fixed"),
    Layer("normflows", "DiagGaussian", Gaussian, _CODE, ("5a935066c378",), anything, "log_prob, any temperature"),
    Layer("normflows", "ClassCondDiagGaussian", ClassGaussian, _CODE, ("01d4fe5c1069",), anything,
          "log_prob of labels [B], any temperature"),
)
