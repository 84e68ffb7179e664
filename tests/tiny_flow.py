"""A model of a few hundred parameters with the protocol of every ClassFlow, for tests of the trainer."""

import math

import torch
from torch import Tensor, nn

from fastflow.ops import dequantize


class TinyFlow(nn.Module):
    """Logit, a diagonal affine map that starts from data, a Gaussian a class; dropout, for a trainer must key it."""

    def __init__(self, levels: int, features: int, classes: int):
        super().__init__()
        self.levels = levels
        self.shift, self.log_scale = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros(features))
        self.means = nn.Linear(classes, features, bias=False)
        self.dropout = nn.Dropout(0.1)

    def class_scores(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self._logit(x, noise)
        z = self.dropout((z - self.shift) * self.log_scale.exp())
        squares = (z[:, None, :] - self.means.weight.T).square().sum(2)
        log_pi = -math.log(self.means.in_features)
        return log_det + self.log_scale.sum(), log_pi - 0.5 * (squares + z.shape[1] * math.log(2 * math.pi))

    @torch.no_grad()
    def initialize(self, x: Tensor, labels: Tensor | None = None, noise: Tensor | None = None) -> None:
        z, _ = self._logit(x, noise)
        self.shift.copy_(z.mean(0))
        self.log_scale.copy_(-z.std(0).log())

    def _logit(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        v = 0.025 + 0.95 * dequantize(x, noise, levels=self.levels).flatten(1)
        return v.log() - (-v).log1p(), (math.log(0.95) - v.log() - (-v).log1p()).sum(1)


SMALL = {  # a configuration that trains in a second
    "data": {"name": "digits", "monitor": 30},
    "model": {
        "trunk": {"kind": "vector", "scales": 2, "steps": 1, "hidden": 8, "dropout": 0.1},
        "head": {"kind": "flow", "levels": 1, "steps": 1, "hidden": 8, "blocks": 1, "dropout": 0.1},
    },
    "sampling": {"batch": 16},
    "loss": {"classification": 1.0, "view": 1.0, "pseudo": 1.0, "pseudo_threshold": 0.2},
    "optimizer": {"ema": 0.9, "clip": 10.0},
    "steps": 4,
    "device": "cpu",
}
