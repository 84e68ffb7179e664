"""From a run or a checkpoint back to its model and data, for evaluation, samples and figures."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fastflow.training.build import Data, Model, build_model, choose_device, load_data, load_pretrained, split
from fastflow.training.checkpoint import load_checkpoint
from fastflow.training.config import Config
from fastflow.training.config_file import load_config, parse_config
from fastflow.training.run import CONFIG, find_checkpoints
from fastflow.training.state import load_weights


@dataclass(frozen=True)
class Restored:
    """A trained model in evaluation mode, with what its checkpoint says of it.

    `folder` is that of the run, or of the checkpoint where it lies in no run; None for a pretrained model. `data` is
    its `describe`, `labelled` and `monitor` are rows of the training set.
    """

    model: Model
    config: Config
    folder: Path | None
    seed: int
    step: int
    data: dict
    labelled: list[int]
    monitor: list[int]
    device: torch.device

    def load_data(self) -> Data:
        """The data set the model was trained on. Raises ValueError if it is another one now."""
        data = load_data(self.config.data)
        if data.describe() != self.data:
            raise ValueError(f"data {data.name} is not the data of the checkpoint: {data.describe()}, was {self.data}")
        return data


def restore(path: Path, device: str = "auto") -> list[Restored]:
    """The model of a checkpoint folder, or of the latest checkpoint of every seed of a run.

    The averaged weights where there are any. Raises FileNotFoundError, or ValueError for a damaged checkpoint.
    """
    return [_restore(folder, choose_device(device)) for folder in find_checkpoints(path)]


def restore_pretrained(config_path: Path, weights: Path, device: str = "auto") -> Restored:
    """A checkpoint of the public SCNF code as the model of a configuration, which names data and labelled rows."""
    config, chosen = load_config(config_path), choose_device(device)
    if config.model.kind != "scnf":
        raise ValueError(f"{config_path}: model.kind is {config.model.kind}, expected scnf: --pretrained is of the "
                         "public SCNF code")
    data = load_data(config.data)
    model = build_model(config.model, data.describe())
    load_pretrained(model, weights)
    rows = split(data, config.data, config.seed)
    if model.head.prior.kind == "empirical":
        model.head.prior.count(data.train_labels[rows.labelled])
    model.to(chosen).eval()
    lists = rows.labelled.tolist(), rows.monitor.tolist()
    return Restored(model, config, None, config.seed, 0, data.describe(), *lists, chosen)


def _restore(folder: Path, device: torch.device) -> Restored:
    checkpoint = load_checkpoint(folder)
    state = checkpoint.state
    config = parse_config(state["config"], str(folder / "state.json"))
    weights = checkpoint.tensors.get("average", checkpoint.tensors["model"])
    model = build_model(config.model, state["data"], weights.get("units"))
    load_weights(model, weights, str(folder))
    run = folder.parent.parent.parent
    return Restored(
        model=model.to(device).eval(),
        config=config,
        folder=run if (run / CONFIG).is_file() else folder,
        seed=state["seed"],
        step=state["step"],
        data=state["data"],
        labelled=state["split"]["labelled"],
        monitor=state["split"]["monitor"],
        device=device,
    )
