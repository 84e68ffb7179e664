"""The optimiser, its learning-rate schedule and the averaged weights."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Adam, Adamax, AdamW, Optimizer

from fastflow.training.config import OptimizerConfig, ScheduleConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Adamax, Adam or AdamW; weight decay goes to conditioner weights alone unless `decay_all`.

    Each group has its `base_lr`, which `set_lr` multiplies: that of the class head may be another. Raises ValueError
    for `head_lr` where no head trains.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    of_head = False
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            apart = config.head_lr is not None and name.startswith("head.")
            of_head |= apart
            decay = config.weight_decay if config.decay_all or _is_weight(model, name) else 0.0
            groups.setdefault((config.head_lr if apart else config.lr, decay), []).append(parameter)
    if config.head_lr is not None and not of_head:
        raise ValueError(f"optimizer.head_lr is {config.head_lr}, expected none: the model has no head that trains")
    kind = {"adamax": Adamax, "adam": Adam, "adamw": AdamW}[config.name]
    return kind([{"params": parameters, "weight_decay": decay, "base_lr": lr}
                 for (lr, decay), parameters in groups.items()], lr=config.lr, foreach=True)


def _is_weight(model: nn.Module, name: str) -> bool:
    """Whether it is the matrix of a linear or convolution layer, or such a matrix's gain under weight normalisation,
    whose direction no decay can shrink; decay of the rest pulls at scales and determinants."""
    owner, _, leaf = name.rpartition(".")
    if name.endswith("parametrizations.weight.original0"):
        return True
    return leaf == "weight" and isinstance(model.get_submodule(owner), nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def lr_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """What the base learning rate is multiplied with at `step` in [0, steps): a function of the step, nothing to save.

    linear: 1 - step/steps. hat: `warmup` steps up, then linearly down. cosine: the same with half a cosine. hold: 1 for
    half of the steps, then linearly to 0.01 at 90 %. drops: a tenth from 50 %, a hundredth from 80 % on.
    """
    part = step / steps
    if config.name == "hold":
        return min(1.0, max(0.01, 1.0 - 0.99 * (part - 0.5) / 0.4))
    if config.name == "drops":
        return 1.0 if part < 0.5 else 0.1 if part < 0.8 else 0.01
    if config.name == "constant":
        return 1.0
    if config.name == "linear":
        return 1.0 - part
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / (steps - config.warmup)
    return 1.0 - done if config.name == "hat" else 0.5 * (1.0 + math.cos(math.pi * done))


def set_lr(optimizer: Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = factor * group["base_lr"]


class WeightAverage:
    """Exponential moving average of a model's weights, `self.model`; early on it looks back over a tenth of the steps.

    The decay at a step is min(decay, (1 + step) / (10 + step)), so the average is complete with its weights alone.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        pairs = list(zip(self.model.state_dict(keep_vars=True).values(), model.state_dict().values(), strict=True))
        self._averaged = _columns(pair for pair in pairs if pair[1].is_floating_point())
        self._latest = _columns(pair for pair in pairs if not pair[1].is_floating_point())

    @torch.no_grad()
    def update(self, step: int) -> None:
        averages, weights = self._averaged
        torch._foreach_lerp_(averages, weights, 1.0 - min(self.decay, (1 + step) / (10 + step)))
        if self._latest:
            torch._foreach_copy_(*self._latest)


def _columns(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[list[Tensor]]:
    return [list(column) for column in zip(*pairs, strict=True)]
