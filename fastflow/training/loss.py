"""The one loss of every system: exact likelihood, joint where the label is known, marginal where it is not."""

import torch
from torch import Tensor

from fastflow.ops import class_marginal
from fastflow.training.config import LossConfig

Parts = dict[str, Tensor]


def likelihood_loss(log_base: Tensor, scores: Tensor, labels: Tensor, config: LossConfig,
                    responsibilities: Tensor | None = None) -> tuple[Tensor, Parts]:
    """Weighted mean of -log p(x, y) (labelled rows) and -log p(x) (label -1) in nats, plus the weighted cross-entropy.

    `log_base` [B] and `scores` [B, K] as `model.class_scores` gives them, `labels` int64 [B]. Returns the scalar loss
    and its detached parts, each 0-d: means over the labelled or the unlabelled rows of the batch, 0 where there is
    none; of a model without classes (K = 1) only the latter. No value is read back to the host.

    With `responsibilities` [B, K] rows without a label have -sum_k R[k] log p(x, y = k) in their place, EM's M-step;
    what is logged stays the marginal.
    Source: Atanov et al. 2019 (SCNF, arXiv 1905.00505).
    """
    known = labels >= 0
    marginal, joint = scores.logsumexp(1), _pick(scores, labels)
    log_prob = log_base + torch.where(known, joint, marginal)
    weights = torch.where(known, config.labelled, 1.0)
    fitted = log_prob
    if responsibilities is not None:
        fitted = torch.where(known, log_prob, log_base + class_marginal(scores, weights=responsibilities))
    total = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)  # with `labelled` 0 no row may weigh anything
    loss = -(weights * fitted).sum() / total
    if scores.shape[1] == 1:
        return loss, {"nll_unlabelled": mean_of(-log_prob, ~known).detach()}
    cross_entropy = mean_of(marginal - joint, known)
    if config.classification:
        loss = loss + config.classification * cross_entropy
    return loss, {
        "nll_labelled": mean_of(-log_prob, known).detach(),
        "nll_unlabelled": mean_of(-log_prob, ~known).detach(),
        "cross_entropy": cross_entropy.detach(),
        "accuracy": mean_of((scores.argmax(1) == labels).to(log_prob), known),
    }


def view_loss(
    scores: Tensor, view_scores: Tensor, labels: Tensor, config: LossConfig, step: int
) -> tuple[Tensor, Parts]:
    """What `view_scores` [B, K], of moved copies of the rows, add to the loss: they should tell the rows' classes.

    Labelled rows: cross-entropy with the label. Unlabelled rows: with the most probable class of the row itself, and 0
    where it is no more probable than `pseudo_threshold` (Sohn et al. 2020, "FixMatch", arXiv 2001.07685, eq. 4). Only
    posteriors enter, for a moved image is no draw from p(x).
    """
    known = labels >= 0
    log_posterior = view_scores.log_softmax(1)
    view = mean_of(-_pick(log_posterior, labels), known)
    confidence, guess = scores.detach().softmax(1).max(1)
    sure = confidence > config.pseudo_threshold
    pseudo = mean_of(torch.where(sure, -_pick(log_posterior, guess), 0.0), ~known)
    loss = config.view * view + _pseudo_weight(config, step) * pseudo
    return loss, {"view_cross_entropy": view.detach(), "pseudo_share": mean_of(sure.to(view), ~known)}


def _pseudo_weight(config: LossConfig, step: int) -> float:
    done = step - config.pseudo_start
    growth = min(1.0, done / config.pseudo_ramp) if config.pseudo_ramp else 1.0
    return config.pseudo * growth if done >= 0 else 0.0


def _pick(scores: Tensor, labels: Tensor) -> Tensor:
    """scores[b, labels[b]], and anything where the label is -1."""
    return scores.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)


def mean_of(values: Tensor, rows: Tensor) -> Tensor:
    """The mean of values [B] over the rows that a mask [B] names, 0 where it names none."""
    return torch.where(rows, values, 0.0).sum() / rows.sum().clamp(min=1)
