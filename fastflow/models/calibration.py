"""The scale of a Gaussian mixture at which its posteriors are calibrated."""

import math

import torch
from torch import Tensor

from fastflow.ops import gaussian_class_scores
from fastflow.ops._checks import check_finite, check_labels


def calibrated_scale(z: Tensor, labels: Tensor, means: Tensor, log_prior: Tensor) -> float:
    """The one standard deviation of N(means_k, scale^2 I) of least mean -log p(y | z) over z [B, D], labels [B].

    With a_k = -|z - means_k|^2 / 2 and t = 1 / scale^2 that is the mean of logsumexp_k(t a_k + log p(k)) - (t a_y +
    log p(y)), convex in t: bisection finds where its slope, the mean of sum_k p(k | z) a_k - a_y, is zero. Raises
    ValueError where it is zero at no finite, positive t.
    """
    op, classes = "calibrated_scale", len(means)
    check_labels(op, "labels", labels, len(z), classes, unlabelled=False)
    if len(z) == 0:
        raise ValueError(f"{op}: z has no rows, expected some that training has not seen")
    check_finite(op, z=z)
    z, means, log_prior = z.double(), means.double(), log_prior.double()
    a = gaussian_class_scores(z, means, z.new_zeros(1, 1), z.new_zeros(classes))
    a = a - a.gather(1, labels.long()[:, None])  # the differences alone count
    a, log_prior = (values[..., log_prior > -math.inf] for values in (a, log_prior))  # no row is mistaken for others
    if not (a > 0).any():
        raise ValueError(f"{op}: all {len(z)} rows have the mean of their own class nearest, the smaller the scale the "
                         "better, expected rows of which some are mistaken: give more of them")

    def slope(t: float) -> float:
        return float((torch.softmax(t * a + log_prior, dim=1) * a).sum(1).mean())

    if slope(0.0) >= 0:
        raise ValueError(f"{op}: the means are no nearer to the rows of their own class than to others, expected a "
                         "model that tells classes better than the prior")
    low, high = 0.0, 1 / float(a.abs().max())
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (0.5 * (low + high)) ** -0.5
