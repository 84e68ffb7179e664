"""The class head of SCNF-GLOW: one flow, conditioned on a vector that stands for the class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastflow.nn.bijection import Bijection
from fastflow.nn.class_prior import ClassPrior
from fastflow.nn.diagonal_normal import DiagonalNormal
from fastflow.ops._checks import check_labels
from fastflow.ops.class_marginal import class_cross_entropy
from fastflow.ops.flow_class_marginal import flow_class_marginal
from fastflow.ops.flow_class_scores import flow_class_scores, obstacle, repeated


class FlowClassHead(nn.Module):
    """p(z, y) = p(y) N(h(z; c_y); 0, diag(scale^2)) |det dh(z; c_y) / dz|, z [B, features].

    flow              conditional bijection of [B, features], conditioned on c [B, context_features]
    features          width of z
    classes           K; class k is the row c_k of `embedding` [K, context_features], learned, one-hot at first
    context_features  by default K; at least K
    prior             p(y), see `ClassPrior`
    learn_scale       see `DiagonalNormal`
    threshold         backward leaves out what responsibilities leave out; see `flow_class_scores`

    A `conditional_flow` is read and served by kernels for all pairs (row, class), without keeping activations, unless
    its dropout is active; for a flow that cannot be read the batch is repeated. `unfused` says which, and why.
    Source: Atanov et al. 2019 (SCNF, arXiv 1905.00505).
    """

    def __init__(self, flow: Bijection, features: int, classes: int, context_features: int | None = None,
                 prior: str | Sequence[float] | Tensor = "uniform", learn_scale: bool = True,
                 threshold: float | None = None) -> None:
        super().__init__()
        context_features = classes if context_features is None else context_features
        if context_features < classes:
            raise ValueError(f"FlowClassHead: context_features is {context_features}, expected at least the "
                             f"{classes} classes, which start one-hot")
        self.features, self.classes, self.threshold = features, classes, threshold
        self.prior = ClassPrior(classes, prior)
        self.flow = flow
        self.embedding = nn.Parameter(torch.eye(classes, context_features))
        self.base = DiagonalNormal(features, learn_scale)

    @property
    def unfused(self) -> str:
        """Why the flow is called with the batch repeated, as things stand; "" where kernels serve all pairs."""
        return obstacle(self.flow, self.embedding)

    def scores(self, z: Tensor) -> Tensor:
        """G [B, K] = log p(z, y = k), nats; all pairs go through the flow in one call."""
        return flow_class_scores(z, self.flow, self.embedding, self.base.log_prob, self.prior.log_prob(),
                                 self.threshold)

    def marginal(self, z: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """[B]: G[y] for labels y >= 0, logsumexp or the weighted sum over k of G for label -1; see `class_marginal`."""
        return flow_class_marginal(z, self.flow, self.embedding, self.base.log_prob, self.prior.log_prob(),
                                   labels, weights, self.threshold)

    def cross_entropy(self, z: Tensor, labels: Tensor) -> Tensor:
        """[B] nats: -log p(y | z) of labelled rows, 0 of rows with label -1."""
        return class_cross_entropy(self.scores(z), labels)

    def posterior(self, z: Tensor) -> Tensor:
        """[B, K] p(y = k | z), the responsibilities."""
        return torch.softmax(self.scores(z), dim=1)

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        """z_h [B, features] = h(z; c_y), the part of z that the class does not explain."""
        return self.flow(z, self._contexts(z, labels))[0]

    def decode(self, z_h: Tensor, labels: Tensor) -> Tensor:
        """z [B, features] with h(z; c_y) = z_h."""
        return self.flow.inverse(z_h, self._contexts(z_h, labels))[0]

    def sample(self, labels: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """z [B, features], one draw for each label, the base's scales multiplied by `temperature`."""
        return self.decode(self.base.sample(len(labels), temperature, generator, like=self.embedding), labels)

    def initialize(self, z: Tensor) -> None:
        """Starts the data-dependent layers from all rows with all classes."""
        self.flow.initialize(*repeated(z, self.embedding))

    def _contexts(self, z: Tensor, labels: Tensor) -> Tensor:
        check_labels("FlowClassHead", "labels", labels, z.shape[0], self.classes, unlabelled=False)
        return self.embedding[labels.long()]

    def extra_repr(self) -> str:
        return f"{self.features}, {self.classes}, threshold={self.threshold}, unfused={self.unfused!r}"
