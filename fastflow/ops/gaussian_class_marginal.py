"""Joint and marginal scores of Gaussian classes: `gaussian_class_scores` reduced over the classes, row by row.

    label y >= 0     log p(z, y)
    label -1         log p(z) = logsumexp_k log p(z, k), or sum_k weights[k] log p(z, k) with weights

The reduction is `class_marginal`, whose header says what the weights serve.
"""

from torch import Tensor

from fastflow.ops.class_marginal import class_marginal
from fastflow.ops.gaussian_class_scores import gaussian_class_scores


def gaussian_class_marginal(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor,
                            labels: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """[B] nats, float32 (float64 for float64 z): the joint score of labelled rows, the marginal of the others.

    z, means, log_scales, log_prior as in `gaussian_class_scores`; labels [B] with -1 for unlabelled and weights [B, K]
    as in `class_marginal`. Raises what those raise.
    """
    return class_marginal(gaussian_class_scores(z, means, log_scales, log_prior), labels, weights)
