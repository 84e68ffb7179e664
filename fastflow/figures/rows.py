"""The rows of any data set, in the form that a model takes them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastflow.data import ImageData
from fastflow.figures.style import SHOWN
from fastflow.training.build import Data
from fastflow.training.evaluate import ROWS
from fastflow.training.inputs import model_input


def test_rows(data: Data) -> tuple[Tensor, Tensor]:
    """(x, labels) of the test set; only rows of known class, if there are any."""
    x, labels = data.test_x, data.test_labels
    known = labels >= 0
    return (x[known], labels[known]) if known.any() else (x, labels)


def one_of_each_class(data: Data) -> tuple[Tensor, Tensor]:
    """(x, labels) of the first test row of each class that has any, of the first `SHOWN` classes."""
    x, labels = test_rows(data)
    rows = [int((labels == label).nonzero()[0]) for label in range(data.classes) if label in labels][:SHOWN]
    return x[rows], labels[rows]


def prepared(model: nn.Module, data: Data, x: Tensor) -> Tensor:
    """x on the model's device as the model takes it, without noise."""
    return model_input(model, x.to(next(model.parameters()).device), None, data.levels)


def as_shown(data: ImageData, images: Tensor) -> Tensor:
    """Grey levels as floats inside (0, 1), at the middle of each level."""
    return (images + 0.5) / data.levels


@torch.no_grad()
def in_batches(function: Callable, model: nn.Module, data: Data, x: Tensor, *more: Tensor) -> dict[str, Tensor]:
    """`function(x, *more)`, a dict of tensors [B, ...], of all rows, `ROWS` at a time, on the model's device."""
    device = next(model.parameters()).device
    batches = list(zip(*(part.split(ROWS) for part in (x, *more)), strict=True))
    batches = tqdm(batches, desc="figures", unit=" batches", disable=None, delay=5, leave=False)
    results = [function(prepared(model, data, x), *(part.to(device) for part in more)) for x, *more in batches]
    return {name: torch.cat([result[name] for result in results]) for name in results[0]}
