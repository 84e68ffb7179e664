"""From a configuration to data, device and model."""

import numpy as np
import torch

from fastflow import _backend
from fastflow.data import DATA_SETS, ImageData, Split, idx, npz, read_split, split_rows
from fastflow.models import SCNF, read_reference
from fastflow.training.config import DataConfig, ModelConfig
from fastflow.training.state import load_weights


def load_data(config: DataConfig) -> ImageData:
    if config.name == "npz":
        return npz(config.path, config.levels or 256)
    if config.name == "idx":
        return idx(config.path)
    entry = DATA_SETS[config.name]
    return entry.load(config.path) if entry.official.files else entry.load()


def split(data: ImageData, config: DataConfig, seed: int) -> Split:
    """The rows that the label seed chooses, or those of the file `data.split`.

    Raises ValueError where the file is of other data, or says something else than data.labels, monitor and hold_out.
    """
    if config.split is not None:
        return _read_split(data, config)
    labels = data.train_labels.numpy()
    return split_rows(labels, data.classes, config.labels, seed, config.monitor, config.hold_out)


def _read_split(data: ImageData, config: DataConfig) -> Split:
    chosen = read_split(config.split, data)
    said = {"labels": len(chosen.labelled), "monitor": len(chosen.monitor)}
    if len(chosen.monitor):
        said["hold_out"] = not np.isin(chosen.monitor, chosen.unlabelled).any()
    for key, value in said.items():
        if getattr(config, key) != value:
            raise ValueError(f"data.{key} is {getattr(config, key)}, expected {value} as in {config.split}")
    return chosen


def choose_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" stands for.

    Raises ValueError for a CUDA that is not there, RuntimeError for an instruction set that the CPU has not.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but PyTorch sees no CUDA device; use device=auto or device=cpu")
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    _backend.require_instruction_set()
    return torch.device("cpu")


def build_model(config: ModelConfig, shape: tuple[int, int, int], levels: int, classes: int) -> SCNF:
    """The untrained model for images of `shape` (C, H, W). Raises ValueError if shape and architecture do not fit."""
    return SCNF.build(shape, levels, classes, trunk=config.trunk.model_dump(), head=config.head.model_dump(),
                      prior=config.prior)


def load_pretrained(model: SCNF, path: str) -> None:
    """Takes the weights of a checkpoint of the public SCNF code (`model.torch`), which must be of this architecture."""
    reference = SCNF.from_reference(read_reference(path), model.head.prior.kind)
    load_weights(model, reference.state_dict(), path)
