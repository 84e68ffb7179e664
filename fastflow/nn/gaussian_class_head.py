"""The class head of SCNF-GMM and FlowGMM: one Gaussian a class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.nn.class_prior import ClassPrior
from fastflow.ops._checks import check_labels
from fastflow.ops.class_marginal import class_cross_entropy, class_marginal
from fastflow.ops.full_gaussian_class_scores import full_gaussian_class_scores
from fastflow.ops.gaussian_class_marginal import (
    gaussian_class_cross_entropy,
    gaussian_class_marginal,
    gaussian_class_posterior,
)
from fastflow.ops.gaussian_class_scores import gaussian_class_scores

COVARIANCES = ("shared_diag", "class_diag", "isotropic", "shared_full", "class_full")


class GaussianClassHead(nn.Module):
    """p(z, y) = p(y) N(z; mean_y, L_y L_y^T), z [B, features], L_y = diag(scale_y) unless the covariance is full.

    features    D
    classes     K
    covariance  "shared_diag": scale [D], the same for every class (SCNF-GMM);
                "class_diag": scale [K, D]; "isotropic": one scale a class (FlowGMM);
                "shared_full" and "class_full": L with scale on its diagonal and `lower`, 0 at first, below it
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
        shared, full = covariance.startswith("shared"), covariance.endswith("full")
        kinds = 1 if shared else classes
        self.rho = nn.Parameter(torch.zeros(kinds, 1 if covariance == "isotropic" else features))
        self.register_parameter("lower", nn.Parameter(torch.zeros(kinds, features, features)) if full else None)

    @property
    def scales(self) -> Tensor:
        """Standard deviations, [K, D] with 1 for a dimension they do not vary in."""
        return F.softplus(self.rho)

    @property
    def scale_tril(self) -> Tensor | None:
        """Cholesky factors of the covariances, [K or 1, D, D]; None where they are diagonal."""
        return None if self.lower is None else self.lower.tril(-1) + torch.diag_embed(self.scales)

    def scores(self, z: Tensor) -> Tensor:
        """G [B, K] = log p(z, y = k), nats."""
        if self.lower is not None:
            return full_gaussian_class_scores(z, self.means, self.scale_tril, self.prior.log_prob())
        return gaussian_class_scores(z, *self._diagonal())

    def marginal(self, z: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """[B]: G[y] for labels y >= 0, logsumexp or the weighted sum over k of G for label -1; see `class_marginal`."""
        if self.lower is not None:
            return class_marginal(self.scores(z), labels, weights)
        return gaussian_class_marginal(z, *self._diagonal(), labels, weights)

    def cross_entropy(self, z: Tensor, labels: Tensor) -> Tensor:
        """[B] nats: -log p(y | z) of labelled rows, 0 of rows with label -1."""
        if self.lower is not None:
            return class_cross_entropy(self.scores(z), labels)
        return gaussian_class_cross_entropy(z, *self._diagonal(), labels)

    def posterior(self, z: Tensor) -> Tensor:
        """[B, K] p(y = k | z), the responsibilities."""
        if self.lower is not None:
            return torch.softmax(self.scores(z), dim=1)
        return gaussian_class_posterior(z, *self._diagonal())

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        """z_h [B, features] = L_y^-1 (z - mean_y), the part of z that the class does not explain."""
        mean, of_class = self._of(z, labels)
        if self.lower is None:
            return (z - mean) / of_class
        return torch.linalg.solve_triangular(of_class, (z - mean)[..., None], upper=False)[..., 0]

    def decode(self, z_h: Tensor, labels: Tensor) -> Tensor:
        """z [B, features] = mean_y + L_y z_h."""
        mean, of_class = self._of(z_h, labels)
        return mean + (of_class * z_h if self.lower is None else (of_class @ z_h[..., None])[..., 0])

    def sample(self, labels: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """z [B, features], one draw for each label, the scales multiplied by `temperature`."""
        noise = torch.randn(len(labels), self.features, generator=generator, dtype=self.means.dtype,
                            device=self.means.device)
        return self.decode(temperature * noise, labels)

    def initialize(self, z: Tensor) -> None:
        """Nothing here starts from data."""

    def _diagonal(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.means, self.scales.log(), self.prior.log_prob()

    def _of(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(means [B, D], scales [B, D] or factors [B, D, D]) of the labels' classes."""
        check_labels("GaussianClassHead", "labels", labels, z.shape[0], self.classes, unlabelled=False)
        labels = labels.long()
        of_class = self.scales if self.lower is None else self.scale_tril
        wide = (self.classes, self.features) if self.lower is None else (self.classes, *of_class.shape[1:])
        return self.means[labels], of_class.expand(wide)[labels]

    def extra_repr(self) -> str:
        return f"{self.features}, {self.classes}, covariance={self.covariance!r}"
