"""What models with latent variables have in common: where a `ClassFlow` has densities, they have lower bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastflow.models.class_flow import labels_of
from fastflow.ops import class_cross_entropy, class_marginal
from fastflow.ops._checks import bad_shape, check_device, check_float


class ClassBound(nn.Module):
    """A density of data x and classes y with evidence lower bounds of it. Units are nats; x is [B, *shape] floats.

        log_base + G[k]                           <= log p(x, y = k)
        log_base + sum_k q[k] (G[k] - log q[k])   <= log p(x),  q = q(y | x) the classifier's; equality at q = softmax G

    Both hold in expectation over the noise: a single draw may lie above. So this is no `ClassFlow`, though
    `class_scores` has the same form: nothing here is called log_prob, and what is a bound is called `elbo`.

    A subclass sets `shape` (of one x), `features` (D, its dimensions), `classes` (K), `noise_features` and `binary`
    (whether x is 0 and 1, or their probability), and defines `class_terms` and `log_q`; `log_base` too, if it has such
    a part. K = 1 is a model without classes.

    noise   [B, noise_features], standard normal; None: every latent is the mean of its q, deterministic and no bound
    labels  integers [B], -1 for unlabelled; None: no row is labelled

    Source: Kingma et al. 2014, "Semi-supervised learning with deep generative models", arXiv 1406.5298, eqs. 6 to 9.
    """

    shape: tuple[int, ...]
    features: int
    classes: int
    noise_features: int
    binary: bool

    def class_terms(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(G [B, K], log q(y | x) [B, K]): all that training moves. G contains log p(y = k)."""
        raise NotImplementedError(f"{type(self).__name__} defines no class_terms")

    def log_q(self, x: Tensor) -> Tensor:
        """[B, K] log q(y = k | x): the classifier alone, nothing drawn."""
        raise NotImplementedError(f"{type(self).__name__} defines no log_q")

    def log_base(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B] the part of the bound that no class and no training changes."""
        return self._flat(x).new_zeros(len(x))

    def class_scores(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(log_base [B], G [B, K]), the form of `ClassFlow.class_scores`, here of bounds."""
        return self.log_base(x, noise), self.class_terms(x, noise)[0]

    def elbo(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """[B] lower bound, in expectation over the noise, on log p(x, y) of labelled rows and log p(x) of others."""
        return self.log_base(x, noise) + class_bound(*self.class_terms(x, noise), labels)

    def training_terms(self, x: Tensor, noise: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(bound [B], cross-entropy [B]): the elbo without log_base, and -log q(y | x), which is 0 for label -1.

        The objective of eq. 9 is to minimise, the sums going over all rows of the training set,

            -sum bound + `classification_weight` * sum cross-entropy + `weight_penalty`

        A batch with any share of labelled rows serves: means over its labelled and over its unlabelled rows, times the
        numbers of such rows in the training set, estimate the sums.
        """
        scores, log_q = self.class_terms(x, noise)
        return class_bound(scores, log_q, labels), class_cross_entropy(log_q, labels)

    def weight_penalty(self) -> Tensor:
        """-log p(weights) up to a constant, 0-d: matrices are N(0, 1), biases have no prior."""
        return 0.5 * sum(linear.weight.square().sum() for linear in self.modules() if isinstance(linear, nn.Linear))

    def predict_proba(self, x: Tensor) -> Tensor:
        """[B, K] q(y | x)."""
        return self.log_q(x).exp()

    def predict(self, x: Tensor) -> Tensor:
        """[B] the class that q(y | x) holds most probable."""
        return self.log_q(x).argmax(1)

    def bits_per_dim_bound(self, x: Tensor, noise: Tensor) -> Tensor:
        """[B] upper bound, in expectation over the noise, on -log2 p(x) / D, of x as it is given."""
        return -self.elbo(x, noise) / (self.features * math.log(2))

    def _flat(self, x: Tensor) -> Tensor:
        """x as [B, D], checked."""
        name = type(self).__name__
        check_float(name, "x", x)
        if x.shape[1:] != self.shape:
            raise ValueError(f"{name}: x has shape {tuple(x.shape)}, expected (B, {', '.join(map(str, self.shape))})")
        return x.flatten(1).to(next(self.parameters()).dtype)

    def _noise(self, noise: Tensor | None, x: Tensor, shape: Sequence[int]) -> Tensor | None:
        """noise as [B, *shape], checked."""
        if noise is None:
            return None
        name = type(self).__name__
        check_float(name, "noise", noise)
        if noise.shape != (len(x), self.noise_features):
            raise bad_shape(name, "noise", noise, (len(x), self.noise_features))
        check_device(name, x, noise=noise)
        return noise.reshape(len(x), *shape)

    def _labels(self, y: int | Tensor, rows: int) -> Tensor:
        return labels_of(type(self).__name__, y, rows, self)


def class_bound(scores: Tensor, log_q: Tensor, labels: Tensor | None = None) -> Tensor:
    """[B] nats: G[y] of labelled rows, sum_k q[k] (G[k] - log q[k]) of others, which is at most logsumexp_k G.

    scores  G [B, K]
    log_q   [B, K] log-probabilities; a class with q = 0 contributes 0
    labels  integers [B], -1 for unlabelled; None: no row is labelled

    Source: Kingma et al. 2014 (arXiv 1406.5298), eqs. 6 and 7.
    """
    q = log_q.exp()
    entropy = -class_marginal(log_q, weights=q)
    bound = class_marginal(scores, labels, weights=q)
    return bound + (entropy if labels is None else torch.where(labels >= 0, 0.0, entropy))


def classification_weight(rows: int, labelled: int, alpha: float = 0.1) -> float:
    """The weight of a labelled row's cross-entropy, alpha rows / labelled: 50 for 100 labels of 50 000 rows.

    rows      of the training set, labelled or not
    labelled  those with a label; 0 gives 0

    Source: Kingma et al. 2014 (arXiv 1406.5298), eq. 9, whose alpha is 0.1 rows.
    """
    if not 0 <= labelled <= rows:
        raise ValueError(f"classification_weight: labelled is {labelled}, expected 0 to rows = {rows}")
    return alpha * rows / labelled if labelled else 0.0
