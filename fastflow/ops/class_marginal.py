"""What the likelihood of a batch needs of its class scores G [B, K], row by row.

    label y >= 0           G[y]                     = log p(., y)
    label -1               logsumexp_k G[k]         = log p(.)
    label -1 and weights   sum_k weights[k] G[k]

The weighted sum serves EM (weights = the responsibilities softmax G of an earlier G: its gradient there is that of the
marginal), M2 (weights = q(y|x)), soft labels, and candidate sets of labels (weights = softmax of G over the set). A
class of weight 0 contributes 0 even where its score is -inf.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow.ops._checks import bad_shape, check_device, check_float, check_labels


def class_marginal(scores: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """[B] nats: the joint score of labelled rows, the marginal or weighted score of the others.

    scores   [B, K] class scores in nats, K >= 1, a float dtype
    labels   integers [B], -1 for unlabelled; None: no row is labelled
    weights  [B, K], finite; read for unlabelled rows

    Raises TypeError or ValueError naming the argument, also, where looking costs nothing (on CPU), for a label out of
    range.
    """
    op = "class_marginal"
    _check_scores(op, scores)
    if weights is None:
        marginal = torch.logsumexp(scores, dim=1)
    else:
        check_float(op, "weights", weights)
        if weights.shape != scores.shape:
            raise bad_shape(op, "weights", weights, tuple(scores.shape), "like scores")
        silent = (weights == 0) & (scores == -torch.inf)
        marginal = (weights * scores.masked_fill(silent, 0.0)).sum(1)
    if labels is None:
        check_device(op, scores, weights=weights)
        return marginal
    check_labels(op, "labels", labels, *scores.shape, unlabelled=True)
    check_device(op, scores, labels=labels, weights=weights)
    labels = labels.long()
    joint = scores.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return torch.where(labels >= 0, joint, marginal)


def class_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """[B] nats: -log p(y | .) = logsumexp_k scores[k] - scores[y] of labelled rows, 0 of rows with label -1.

    Arguments and errors as in `class_marginal`.
    """
    op = "class_cross_entropy"
    _check_scores(op, scores)
    check_labels(op, "labels", labels, *scores.shape, unlabelled=True)
    check_device(op, scores, labels=labels)
    return F.cross_entropy(scores, labels.long(), ignore_index=-1, reduction="none")


def _check_scores(op: str, scores: Tensor) -> None:
    check_float(op, "scores", scores)
    if scores.dim() != 2 or scores.shape[1] == 0:
        raise bad_shape(op, "scores", scores, "[B, K] with at least one class")
