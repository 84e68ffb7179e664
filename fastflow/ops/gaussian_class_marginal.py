"""What a likelihood needs of Gaussian classes, row by row: reductions of `gaussian_class_scores` over the classes.

One pass over z gives them; [B, K] scores exist in memory only where the result is [B, K].
"""

import torch
from torch import Tensor

from fastflow.ops._checks import bad_shape, check_device, check_float, check_labels
from fastflow.ops.gaussian_class_scores import check, compute


def gaussian_class_marginal(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor,
                            labels: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """[B] nats, float32 (float64 for float64 z): the joint score of labelled rows, the marginal of the others.

        label y >= 0     log p(z, y)
        label -1         log p(z) = logsumexp_k log p(z, k), or sum_k weights[k] log p(z, k) with weights

    z, means, log_scales, log_prior as in `gaussian_class_scores`; labels [B] with -1 for unlabelled and weights [B, K]
    as in `class_marginal`, whose header says what weights serve. Raises as `gaussian_class_scores` does.
    """
    op = "gaussian_class_marginal"
    given = check(op, z, means, log_scales, log_prior)
    labels, weights = _checked(op, z, given[1], labels, weights)
    marginal, picked, _ = compute(*given, labels, weights, with_scores=False)
    if weights is not None:
        return picked
    return marginal if labels is None else torch.where(labels >= 0, picked, marginal)


def gaussian_class_cross_entropy(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor, labels: Tensor,
                                 ) -> Tensor:
    """[B] nats: -log p(y | z) = log p(z) - log p(z, y) of labelled rows, 0 of rows with label -1.

    Arguments and errors as in `gaussian_class_marginal`.
    """
    op = "gaussian_class_cross_entropy"
    given = check(op, z, means, log_scales, log_prior)
    labels, _ = _checked(op, z, given[1], labels, None)
    marginal, picked, _ = compute(*given, labels, None, with_scores=False)
    return torch.where(labels >= 0, marginal - picked, 0.0)


def gaussian_class_posterior(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor) -> Tensor:
    """[B, K] p(y = k | z), the responsibilities. Arguments and errors as in `gaussian_class_scores`."""
    given = check("gaussian_class_posterior", z, means, log_scales, log_prior)
    marginal, _, scores = compute(*given, None, None, with_scores=True)
    return torch.exp(scores - marginal[:, None])


def _checked(op: str, z: Tensor, means: Tensor, labels: Tensor | None, weights: Tensor | None,
             ) -> tuple[Tensor | None, Tensor | None]:
    rows, classes = z.shape[0], means.shape[0]
    if labels is not None:
        check_labels(op, "labels", labels, rows, classes, unlabelled=True)
        labels = labels.long()
    if weights is not None:
        check_float(op, "weights", weights)
        if weights.shape != (rows, classes):
            raise bad_shape(op, "weights", weights, (rows, classes), "one a row and class")
        weights = weights.to(means.dtype)
    check_device(op, z, labels=labels, weights=weights)
    return labels, weights
