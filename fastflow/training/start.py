"""A model as a run starts it: built, with the weights it goes on from, its data-dependent layers begun."""

from pathlib import Path

import torch
from torch import Tensor

from fastflow.models import M1M2, FlowGMM
from fastflow.models.class_bound import ClassBound
from fastflow.models.flowgmm import MEANS
from fastflow.training.batches import Batches
from fastflow.training.build import Data, Model, build_model, load_pretrained
from fastflow.training.checkpoint import Checkpoint, load_checkpoint
from fastflow.training.config import Config
from fastflow.training.config_file import parse_config
from fastflow.training.inputs import model_input
from fastflow.training.model_config import ModelConfig
from fastflow.training.run import find_checkpoints
from fastflow.training.state import load_weights

ACTIVE_ROWS = 1000  # training rows that tell which latents of an M1 are active, as in the authors' code


def start_model(config: Config, data: Data, seed: int) -> Model:
    """The model of a run's first step, before `initialize`, on the CPU.

    Raises ValueError if data, architecture and `config.pretrained` do not fit, FileNotFoundError where that is absent.
    """
    if config.model.kind == "m1m2":
        return _m1m2(config, data, seed)
    model = build_model(config.model, data.describe())
    if config.pretrained:
        load_pretrained(model, config.pretrained)
    return model


def _m1m2(config: Config, data: Data, seed: int) -> M1M2:
    checkpoint, source = of_seed(Path(config.pretrained), seed)
    trained = parse_config(checkpoint.state["config"], source)
    if trained.model.kind != "m1":
        raise ValueError(f"pretrained is {config.pretrained}, a run of {trained.model.kind}, expected one of an m1")
    if trained.model != config.model.m1:
        raise ValueError(f"model.m1 is {config.model.m1!r}, expected {trained.model!r}, which {source} holds")
    if checkpoint.state["data"] != data.describe():
        raise ValueError(f"{source}: trained on {checkpoint.state['data']}, but the data is {data.describe()}")
    weights = checkpoint.tensors.get("average", checkpoint.tensors["model"])
    m1 = build_model(trained.model, data.describe())
    load_weights(m1, weights, source)
    rows = data.train_x[:: max(1, len(data.train_x) // ACTIVE_ROWS)][:ACTIVE_ROWS]
    units = m1.active_units(model_input(m1, rows, None, data.levels), config.model.threshold)
    model = build_model(config.model, data.describe(), units)
    model.m1.load_state_dict(m1.state_dict())
    return model


def of_seed(run: Path, seed: int) -> tuple[Checkpoint, str]:
    """The checkpoint of a run for a seed, its own or the only one there is: an M1 learns from no labels."""
    found = find_checkpoints(run)
    own = [folder for folder in found if folder.parent.name == f"seed-{seed}"]
    if not own and len(found) > 1:
        raise ValueError(f"pretrained is {run}, a run of {len(found)} seeds without seed {seed}, expected that or one")
    folder = (own or found)[0]
    return load_checkpoint(folder), str(folder)


def initialize(model: Model, config: ModelConfig, batches: Batches) -> None:
    """Starts data-dependent layers from the batch of step 0, and class means that need data from the labelled rows."""
    if isinstance(model, ClassBound):
        return
    first = batches(0)
    model.initialize(first.x, labels=batches.labels, noise=first.noise)
    if isinstance(model, FlowGMM) and config.means.kind in MEANS:
        model.place_means(config.means.kind, *_labelled(batches), radius=config.means.radius)


def _labelled(batches: Batches) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(batches.split.labelled).to(batches.device)
    return batches.x[rows], batches.labels[rows]
