"""Joint and marginal scores of conditional-flow classes: `flow_class_scores` reduced over the classes, row by row.

    label y >= 0     log p(z, y)
    label -1         log p(z) = logsumexp_k log p(z, k), or sum_k weights[k] log p(z, k) with weights

The reduction is `class_marginal`, whose header says what the weights serve.
"""

from collections.abc import Callable

from torch import Tensor

from fastflow.ops.class_marginal import class_marginal
from fastflow.ops.flow_class_scores import flow_class_scores


def flow_class_marginal(z: Tensor, flow: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], contexts: Tensor,
                        base: Callable[[Tensor], Tensor], log_prior: Tensor, labels: Tensor | None = None,
                        weights: Tensor | None = None, threshold: float | None = None) -> Tensor:
    """[B] nats, float32 (float64 for float64 z): the joint score of labelled rows, the marginal of the others.

    z, flow, contexts, base, log_prior and threshold as in `flow_class_scores`; labels [B] with -1 for unlabelled and
    weights [B, K] as in `class_marginal`. With threshold 0 a labelled row costs one pair in backward, and a class that
    cannot occur none. Raises what those raise.
    """
    return class_marginal(flow_class_scores(z, flow, contexts, base, log_prior, threshold), labels, weights)
