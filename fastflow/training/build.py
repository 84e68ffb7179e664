"""From a configuration to data, device and model."""

import torch

from fastflow import _backend
from fastflow.data import ImageData, Split, digits, mnist, npz, split_rows
from fastflow.models import SCNF, read_reference
from fastflow.training.config import DataConfig, ModelConfig
from fastflow.training.state import load_weights


def load_data(config: DataConfig) -> ImageData:
    if config.name == "digits":
        return digits()
    return mnist(config.path) if config.name == "mnist" else npz(config.path, config.levels or 256)


def split(data: ImageData, config: DataConfig, seed: int) -> Split:
    """The rows that the label seed chooses."""
    labels = data.train_labels.numpy()
    return split_rows(labels, data.classes, config.labels, seed, config.monitor, config.hold_out)


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
