"""The class head of SCNF-GMM and FlowGMM: one Gaussian a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.nn.class_prior import ClassPrior
from fastflow.ops._checks import check_labels
from fastflow.ops.gaussian_class_marginal import (
    gaussian_class_cross_entropy,
    gaussian_class_marginal,
    gaussian_class_posterior,
)
from fastflow.ops.gaussian_class_scores import gaussian_class_scores

COVARIANCES = ("shared_diag", "class_diag", "isotropic")


class GaussianClassHead(nn.Module):
    """p(z, y) = p(y) N(z; mean_y, diag(scale_y^2)), z [B, features].

    features    D
    classes     K
    covariance  "shared_diag": scale [D], the same for every class (SCNF-GMM);
                "class_diag": scale [K, D]; "isotropic": one scale a class (FlowGMM)
    means       [K, D] to start from; by default standard normal draws
    prior       p(y), see `ClassPrior`

    scale = softplus(rho), rho learned and 0 at first (scale ln 2). Sources: Atanov et al. 2019 (SCNF, arXiv
    1905.00505); Izmailov et al. 2020 (FlowGMM, arXiv 1912.13025).
    """

    def __init__(self, features: int, classes: int, covariance: str = "shared_diag", means: Tensor | None = None,
                 prior: str | Sequence[float] | Tensor = "uniform") -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            raise ValueError(f"GaussianClassHead: covariance is {covariance!r}, expected one of "
                             f"{', '.join(COVARIANCES)}")
        self.features, self.classes, self.covariance = features, classes, covariance
        self.prior = ClassPrior(classes, prior)
        if means is not None and means.shape != (classes, features):
            raise ValueError(f"GaussianClassHead: means has shape {tuple(means.shape)}, expected {(classes, features)}")
        self.means = nn.Parameter(torch.randn(classes, features) if means is None else means.detach().clone())
        self.rho = nn.Parameter(torch.zeros(1 if covariance == "shared_diag" else classes,
                                            1 if covariance == "isotropic" else features))

    @property
    def scales(self) -> Tensor:
        """Standard deviations, [K, D] with 1 for a dimension they do not vary in."""
        return F.softplus(self.rho)

    def scores(self, z: Tensor) -> Tensor:
        """G [B, K] = log p(z, y = k), nats."""
        return gaussian_class_scores(z, self.means, self.scales.log(), self.prior.log_prob())

    def marginal(self, z: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """[B]: G[y] for labels y >= 0, logsumexp or the weighted sum over k of G for label -1; see `class_marginal`."""
        return gaussian_class_marginal(z, self.means, self.scales.log(), self.prior.log_prob(), labels, weights)

    def cross_entropy(self, z: Tensor, labels: Tensor) -> Tensor:
        """[B] nats: -log p(y | z) of labelled rows, 0 of rows with label -1."""
        return gaussian_class_cross_entropy(z, self.means, self.scales.log(), self.prior.log_prob(), labels)

    def posterior(self, z: Tensor) -> Tensor:
        """[B, K] p(y = k | z), the responsibilities."""
        return gaussian_class_posterior(z, self.means, self.scales.log(), self.prior.log_prob())

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        """z_h [B, features] = (z - mean_y) / scale_y, the part of z that the class does not explain."""
        mean, scale = self._of(z, labels)
        return (z - mean) / scale

    def decode(self, z_h: Tensor, labels: Tensor) -> Tensor:
        """z [B, features] = mean_y + scale_y z_h."""
        mean, scale = self._of(z_h, labels)
        return mean + scale * z_h

    def sample(self, labels: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """z [B, features], one draw for each label, the scales multiplied by `temperature`."""
        noise = torch.randn(len(labels), self.features, generator=generator, dtype=self.means.dtype,
                            device=self.means.device)
        return self.decode(temperature * noise, labels)

    def initialize(self, z: Tensor) -> None:
        """Nothing here starts from data."""

    def _of(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        check_labels("GaussianClassHead", "labels", labels, z.shape[0], self.classes, unlabelled=False)
        labels = labels.long()
        scales = self.scales.expand(self.classes, self.features)
        return self.means[labels], scales[labels]

    def extra_repr(self) -> str:
        return f"{self.features}, {self.classes}, covariance={self.covariance!r}"
