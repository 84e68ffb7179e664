"""The one loss of every system: exact likelihood, joint where the label is known, marginal where it is not."""

import torch
from torch import Tensor

from fastflow.training.config import LossConfig


def likelihood_loss(
    log_base: Tensor, class_scores: Tensor, labels: Tensor, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted mean of -log p(x, y) (labelled rows) and -log p(x) (label -1) in nats, plus the weighted cross-entropy.

    `log_base` [B] and `class_scores` [B, K] as `model.class_scores` gives them, `labels` int64 [B]. Returns the scalar
    loss and its detached parts, each 0-d: means over the labelled or the unlabelled rows of the batch, 0 where there is
    none. No value is read back to the host. Source: Atanov et al. 2019 (SCNF, arXiv 1905.00505).
    """
    known = labels >= 0
    marginal = class_scores.logsumexp(1)
    joint = class_scores.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
    log_prob = log_base + torch.where(known, joint, marginal)
    weights = torch.where(known, config.labelled, 1.0)
    nll = -(weights * log_prob).sum() / weights.sum()
    cross_entropy = _mean(marginal - joint, known)
    parts = {
        "nll_labelled": _mean(-log_prob, known),
        "nll_unlabelled": _mean(-log_prob, ~known),
        "cross_entropy": cross_entropy,
        "accuracy": _mean((class_scores.argmax(1) == labels).to(log_prob), known),
    }
    loss = nll + config.classification * cross_entropy if config.classification else nll
    return loss, {name: part.detach() for name, part in parts.items()}


def _mean(values: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows, values, 0.0).sum() / rows.sum().clamp(min=1)
