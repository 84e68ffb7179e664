"""Problems for the kernels of the Gaussian class scores, and their results in 80-bit floating point."""

from dataclasses import dataclass

import numpy as np
import torch
from oracles import assert_three_way
from torch import Tensor

from fastflow.ops.gaussian_class_scores import backward_reference, reference

OF_BACKWARD = ("z", "means", "log_scales", "log_prior", "weights")  # what has a gradient, in the order of the op


@dataclass(frozen=True)
class Problem:
    """The op's arguments and the gradients of its results; None where there is none."""

    z: Tensor
    means: Tensor
    log_scales: Tensor
    log_prior: Tensor
    labels: Tensor | None = None
    weights: Tensor | None = None
    grad_marginal: Tensor | None = None
    grad_picked: Tensor | None = None
    grad_scores: Tensor | None = None

    @property
    def given(self) -> tuple[Tensor | None, ...]:
        return self.z, self.means, self.log_scales, self.log_prior, self.labels, self.weights

    @property
    def pulled(self) -> tuple[Tensor | None, ...]:
        return self.grad_marginal, self.grad_picked, self.grad_scores

    def fields(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


SCALES = {"class_diag": (False, False), "shared_diag": (True, False), "isotropic": (False, True), "one": (True, True)}
MIXES = ("unlabelled", "labelled", "weighted", "labelled and weighted")


def problem(rows: int, classes: int, features: int, dtype: torch.dtype = torch.float32, scales: str = "class_diag",
             mix: str = "labelled and weighted") -> Problem:
    """Rows near their class, far from the origin; gradients of everything."""
    own = torch.float64 if dtype == torch.float64 else torch.float32
    means = 4 + torch.randn(classes, features, dtype=own) / 2
    which = torch.randint(classes, (rows,))
    z = (means[which] + torch.randn(rows, features, dtype=own)).to(dtype)
    shared_by_classes, shared_by_features = SCALES[scales]
    shape = 1 if shared_by_classes else classes, 1 if shared_by_features else features
    labels = torch.where(torch.rand(rows) < 0.5, which, -1) if "labelled" in mix.replace("unlabelled", "") else None
    return Problem(
        z, means, 0.3 * torch.randn(shape, dtype=own), torch.randn(classes, dtype=own).log_softmax(0), labels,
        torch.rand(rows, classes, dtype=own) if "weighted" in mix else None, torch.randn(rows, dtype=own),
        torch.randn(rows, dtype=own), torch.randn(rows, classes, dtype=own) / classes)


def _long(tensor: Tensor | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.longdouble) if tensor is None else tensor.double().numpy().astype(np.longdouble)


def truth_of(p: Problem) -> dict[str, tuple[Tensor, Tensor]]:
    """{name: (value, sum of the absolute values of what it adds up)} in 80-bit floating point."""
    rows, classes = p.z.shape[0], p.means.shape[0]
    z, means, log_scales, log_prior = (_long(tensor, ()) for tensor in p.given[:4])
    scale = np.broadcast_to(np.exp(-log_scales), means.shape)
    distance = (z[:, None] - means) * scale
    normal = np.log(2 * np.longdouble(np.pi)) / 2
    scores = log_prior - (distance**2 / 2 + log_scales + normal).sum(-1)
    sizes = abs(log_prior) + (distance**2 / 2 + abs(log_scales) + normal).sum(-1)
    top = scores.max(1, keepdims=True)
    marginal = (top + np.log(np.exp(scores - top).sum(1, keepdims=True)))[:, 0]

    chosen = _long(p.weights, scores.shape).copy()
    labelled = np.zeros(rows, bool) if p.labels is None else p.labels.numpy() >= 0
    if p.labels is not None:
        chosen[labelled] = np.eye(classes)[p.labels.numpy()[labelled]]
    of_marginal, of_picked = (_long(grad, (rows,))[:, None] for grad in (p.grad_marginal, p.grad_picked))
    posterior = np.exp(scores - marginal[:, None])
    c = _long(p.grad_scores, scores.shape) + of_marginal * posterior + of_picked * chosen
    # an error of a score is as large as its terms, and moves the posterior by as much
    of_c = abs(_long(p.grad_scores, scores.shape)) + abs(of_picked * chosen)
    of_c += abs(of_marginal) * posterior * (1 + sizes)
    pull, of_pull = ((a[..., None] * b * scale) for a, b in ((c, distance), (of_c, abs(distance))))
    squares = distance**2
    for_scales, of_scales = (a[..., None] * b for a, b in ((c, squares - 1), (of_c, squares + 1)))
    axes = tuple(axis for axis in (0, 1) if log_scales.shape[axis] != means.shape[axis])
    free = ~labelled[:, None] * of_picked
    values = {
        "marginal": (marginal, sizes.min(1)), "picked": ((chosen * scores).sum(1), (abs(chosen) * sizes).sum(1)),
        "scores": (scores, sizes), "grad_z": (-pull.sum(1), of_pull.sum(1)),
        "grad_means": (pull.sum(0), of_pull.sum(0)),
        "grad_log_scales": (for_scales.sum(0).sum(axes, keepdims=True), of_scales.sum(0).sum(axes, keepdims=True)),
        "grad_log_prior": (c.sum(0), of_c.sum(0)), "grad_weights": (free * scores, abs(free) * sizes)}
    return {name: tuple(torch.from_numpy(each.astype(float)) for each in pair) for name, pair in values.items()}


def assert_right(p: Problem, results: dict[str, Tensor]) -> None:
    truth = truth_of(p)
    marginal, picked, scores = reference(*p.given, True)
    parts = backward_reference(*p.given, marginal, None, *p.pulled, True, True, p.weights is not None)
    eager = {"marginal": marginal, "picked": picked, "scores": scores} | {
        f"grad_{name}": part for name, part in zip(OF_BACKWARD, parts, strict=True)}
    for name, result in results.items():
        value, terms = truth[name]
        assert_three_way(result, eager[name], value, dtype=result.dtype, name=name, terms=terms)
