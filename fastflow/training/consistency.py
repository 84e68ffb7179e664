"""What two views of the same rows add to the likelihood: FlowGMM-cons, and the squared distance of posteriors."""

import torch
from torch import Tensor

from fastflow.training.loss import Parts

KINDS = ("hard", "mse")


def consistency_loss(log_base: Tensor, scores: Tensor, log_prior: Tensor, other_scores: Tensor, *, kind: str = "hard",
                     threshold: float = 0.0) -> tuple[Tensor, Parts]:
    """The mean over all rows, labelled or not, of how far x' disagrees with what its other view x'' says it is.

    log_base, scores   [B], [B, K] of x', as `class_scores` gives them, the same that the likelihood takes
    log_prior          [K] log p(y): the hard term is log p(x' | y), which does not hold it
    other_scores       [B, K] of x'', computed without gradient; none flows to it in any case
    kind               "hard": -log p(x' | k), nats, k the most probable class of x'', 0 for rows where it is no more
                       probable than `threshold`; "mse": |p(y | x') - p(y | x'')|^2, summed over classes
    threshold          0: every row counts

    A moved image is no draw from p(x): the hard term holds the Jacobian of x', and trains the density too. Returns the
    loss and its detached parts, 0-d; no value is read back. Raises ValueError for an unknown kind.
    Source: Izmailov et al. 2020 (FlowGMM, arXiv 1912.13025), section on consistency; "mse": Laine and Aila 2017.
    """
    if kind not in KINDS:
        raise ValueError(f"consistency_loss: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    other = other_scores.detach().softmax(1)
    confidence, guess = other.max(1)
    if kind == "mse":
        loss = (scores.softmax(1) - other).square().sum(1).mean()
    else:
        log_prob = log_base + (scores - log_prior).gather(1, guess[:, None]).squeeze(1)
        loss = torch.where(confidence > threshold, -log_prob, 0.0).mean()
    agreement = (scores.argmax(1) == guess).to(loss).mean()
    return loss, {"consistency": loss.detach(), "agreement": agreement}


def ramped(weight: float, step: int, ramp: int) -> float:
    """`weight`, reached linearly in the first `ramp` steps: weight min((step + 1) / ramp, 1)."""
    return weight * min((step + 1) / ramp, 1.0) if ramp else weight
