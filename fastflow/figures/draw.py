"""Which pictures there are of a run: those that its model and its data have something to show in."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch import nn

from fastflow.data import ImageData
from fastflow.figures.curves import curves
from fastflow.figures.images import (
    analogies,
    interpolations,
    label_swaps,
    prototypes,
    reconstructions,
    style_planes,
    styles,
)
from fastflow.figures.latents import confusion, latents
from fastflow.figures.points import points
from fastflow.figures.probe import obfuscation_probe, probe_picture
from fastflow.figures.samples import samples, samples_that_are_finite, title_of
from fastflow.figures.style import STYLE
from fastflow.models import M1
from fastflow.training.build import Data
from fastflow.training.record import read_metrics
from fastflow.training.restore import Restored
from fastflow.training.run import METRICS

PER_KIND = 10  # samples in a row


def draw_figures(runs: list[Restored], folder: Path, probe: bool = True) -> list[Path]:
    """Draws every figure of the restored seeds of one run into `folder`; returns the files, PNG and JSON.

    `probe` False leaves out the obfuscation probe, for which the model embeds the whole data set.

    Test rows are shown and measured here, after training, and choose nothing. A picture that cannot be drawn, of a
    model whose samples overflow, say, is left out with the reason on stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with matplotlib.rc_context(STYLE):
        metrics = runs[0].folder / METRICS if runs[0].folder else None
        if metrics and metrics.exists():
            watched = "held out" if runs[0].config.data.hold_out else "unlabelled training rows"
            files.append(_save(curves(read_metrics(metrics), watched), folder / "curves.png"))
        data = runs[0].load_data()
        for run in runs:
            for name, draw in pictures(run.model, data, run.labelled, run.seed).items():
                try:
                    figure = draw()
                except FloatingPointError as error:
                    print(f"fastflow: no picture of the {name}: {error}", file=sys.stderr)
                    continue
                if figure is not None:
                    files.append(_save(figure, folder / f"{name}-seed-{run.seed}.png"))
            if probe and separates(run.model):
                files += _probe(run.model, data, folder, run.seed)
    return files


def separates(model: nn.Module) -> bool:
    """Whether its latents have a part that the class explains and one that it should not."""
    return model.classes > 1 and hasattr(model, "reconstruct")


def pictures(model: nn.Module, data: Data, labelled: list[int], seed: int) -> dict[str, Callable[[], Figure | None]]:
    """{name: what draws it} for all that this model, whatever it is, offers on this data; but for curves and probe."""
    classes = model.classes > 1
    chosen: dict[str, Callable[[], Figure | None]] = {}
    if isinstance(data, ImageData):
        chosen["samples"] = partial(_samples, model, seed)
        if classes:
            chosen["prototypes"] = partial(prototypes, model)
        if separates(model):
            chosen["label-swaps"] = partial(label_swaps, model, data)
        if hasattr(model, "trunk"):
            chosen["interpolations"] = partial(interpolations, model, data)
        if hasattr(model, "analogies"):
            chosen["analogies"] = partial(analogies, model, data)
            chosen["styles"] = partial(styles, model, seed)
            if model.latent > 1:
                chosen["style-planes"] = partial(style_planes, model, data)
        elif isinstance(model, M1):
            chosen["reconstructions"] = partial(reconstructions, model, data)
    elif data.shape == (2,):
        chosen["points"] = partial(points, model, data, labelled, seed)
    chosen["latents"] = partial(latents, model, data)
    if classes:
        chosen["confusion"] = partial(confusion, model, data)
    return chosen


def _samples(model: nn.Module, seed: int) -> Figure:
    return samples(*samples_that_are_finite(model, PER_KIND, seed=seed), title_of(model))


def _probe(model: nn.Module, data: Data, folder: Path, seed: int) -> list[Path]:
    """The probe's numbers and their picture, none where no training row of the data has a class."""
    if not (data.train_labels >= 0).any():
        print(f"fastflow: no obfuscation probe: {data.name} has no training row of known class", file=sys.stderr)
        return []
    result = obfuscation_probe(model, data, seed=seed)
    numbers = folder / f"probe-seed-{seed}.json"
    numbers.write_text(json.dumps(result, indent=1) + "\n")
    return [_save(probe_picture(result), numbers.with_suffix(".png")), numbers]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
