"""EM by stochastic gradients: responsibilities are computed once and held while several steps ascend with them.

    E-step   R[b, k] = p(y = k | x_b) of the weights at hand, one-hot where the label is known; no gradient
    M-step   steps on -sum_k R[b, k] log p(x_b, y = k)

The gradient of the first M-step is that of -log p(x_b), where neither dropout nor batch normalisation tells training
from evaluation: with one step to a batch this is plain SGD, step for step.
Source: Atanov et al. 2019 (SCNF, arXiv 1905.00505), whose EM-SGD rows these are; its code does not hold it.
"""

import torch
from torch import Tensor

from fastflow.training.batches import Batch
from fastflow.training.config import LossConfig
from fastflow.training.state import TrainingState

ROWS = 1024  # rows of an E-step over a whole training set in one call
HELD = "responsibilities"


def responsibilities(state: TrainingState, batch: Batch, config: LossConfig) -> Tensor:
    """R [B, K] for the batch, refreshed where it is due, of unlabelled rows; `state.held` keeps it between steps."""
    if config.em_refresh == "batch":
        if state.step % config.em_steps == 0:
            state.held[HELD] = _e_step(state, batch.x, batch.noise)
        return state.held[HELD]
    source = batch.source
    epoch = config.em_steps * max(1, len(source.x) // source.size)
    if state.step % epoch == 0:
        state.held[HELD] = torch.cat([_e_step(state, x, None) for x in source.x.split(ROWS)])
    return state.held[HELD][batch.rows]


@torch.no_grad()
def _e_step(state: TrainingState, x: Tensor, noise: Tensor | None) -> Tensor:
    state.model.eval()  # without dropout, and without moving batch normalisation's statistics
    scores = state.model.class_scores(x, noise=noise)[1]
    state.model.train()
    return scores.softmax(1)
