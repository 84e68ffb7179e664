"""Everything of a run in progress that a checkpoint must hold, and nothing that it can compute again."""

from torch import Tensor, nn
from torch.optim import Optimizer

from fastflow.training.config import OptimizerConfig
from fastflow.training.optimizer import WeightAverage, build_optimizer

_KEPT = {"sum": "sums", "held": "held"}  # prefix in a checkpoint: attribute


class TrainingState:
    """`model`, its `average` (None without ema), `optimizer`, the number of steps taken, the running `sums` (0-d
    tensors) of what is logged next, and tensors that an objective has `held` from an earlier step. Randomness is a
    function of (seed, step) and so is not here."""

    def __init__(self, model: nn.Module, config: OptimizerConfig):
        self.model = model
        self.average = WeightAverage(model, config.ema) if config.ema else None
        self.optimizer = build_optimizer(model, config)
        self.step = 0
        self.sums: dict[str, Tensor] = {}
        self.held: dict[str, Tensor] = {}

    @property
    def served(self) -> nn.Module:
        """The model that is evaluated and served: the average where there is one."""
        return self.average.model if self.average else self.model

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        parts = {"model": self.model.state_dict()}
        if self.average:
            parts["average"] = self.average.model.state_dict()
        moments = {
            f"optimizer.{name}.{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        parts["trainer"] = moments | {f"{kind}.{name}": value for kind, attribute in _KEPT.items()
                                      for name, value in getattr(self, attribute).items()}
        return parts

    def load(self, step: int, parts: dict[str, dict[str, Tensor]]) -> None:
        """Takes over what `tensors` gave. Raises ValueError where weights are missing or do not fit the model."""
        load_weights(self.model, parts["model"], "checkpoint")
        if self.average:
            load_weights(self.average.model, parts["average"], "checkpoint")
        trainer, device = parts["trainer"], next(self.model.parameters()).device
        for kind, attribute in _KEPT.items():
            kept = {name: value for name, value in trainer.items() if name.startswith(f"{kind}.")}
            setattr(self, attribute, {name.removeprefix(f"{kind}."): value.to(device) for name, value in kept.items()})
        _load_moments(self.optimizer, self.model, trainer)
        self.step = step


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """load_state_dict with a one-line ValueError that begins with `source`."""
    own = model.state_dict()
    for name in own | weights:
        shapes = [tuple(part[name].shape) if name in part else "absent" for part in (weights, own)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{source}: {name} is {shapes[0]}, expected {shapes[1]}; is it of another model?")
    model.load_state_dict(weights)


def _load_moments(optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, _, moment = key.removeprefix("optimizer.").rpartition(".")
            moments.setdefault(name, {})[moment] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {i: moments[names[parameter]] for i, parameter in enumerate(parameters) if names[parameter] in moments}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
