"""The distribution p(y) of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastflow.ops._checks import check_labels

KINDS = ("uniform", "empirical", "learned")


class ClassPrior(nn.Module):
    """p(y) of `classes` classes.

    prior  "uniform";
           "empirical": uniform until `count(labels)` sets it to the frequency of the labels;
           "learned": softmax of a parameter, uniform at first;
           or K probabilities, which are normalised and kept

    Raises ValueError for no class, an unknown name, or probabilities that are none.
    """

    def __init__(self, classes: int, prior: str | Sequence[float] | Tensor = "uniform") -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"ClassPrior: classes is {classes}, expected at least 1")
        logits = torch.zeros(classes)
        if isinstance(prior, str):
            if prior not in KINDS:
                raise ValueError(f"ClassPrior: prior is {prior!r}, expected {', '.join(KINDS)} or probabilities")
            self.kind = prior
        else:
            probabilities = torch.as_tensor(prior, dtype=torch.float64)
            total = float(probabilities.sum())
            if probabilities.shape != (classes,) or not (probabilities >= 0).all() or not 0 < total < float("inf"):
                raise ValueError(f"ClassPrior: prior is {probabilities.tolist()}, expected {classes} probabilities")
            self.kind, logits = "given", (probabilities / total).log().to(logits.dtype)
        self.classes = classes
        if self.kind == "learned":
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    def log_prob(self) -> Tensor:
        """[K] log p(y = k), nats."""
        return torch.log_softmax(self.logits, dim=0)

    def count(self, labels: Tensor) -> None:
        """Sets an empirical prior to (count + 1) / (total + K) of the labels, -1 ignored: no class ever vanishes."""
        if self.kind != "empirical":
            raise ValueError(f"ClassPrior: count sets an empirical prior, this one is {self.kind}")
        check_labels("ClassPrior.count", "labels", labels, len(labels), self.classes, unlabelled=True)
        self.logits.copy_(torch.bincount(labels[labels >= 0].long(), minlength=self.classes).add(1).log())

    def sample(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """[rows] labels drawn from p(y)."""
        probabilities = self.log_prob().exp().detach()
        if rows == 0:
            return torch.zeros(0, dtype=torch.int64, device=probabilities.device)
        return torch.multinomial(probabilities, rows, replacement=True, generator=generator)

    def extra_repr(self) -> str:
        return f"{self.classes}, {self.kind}"
