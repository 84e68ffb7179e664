"""Draws of a model, as a picture or as arrays."""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from fastflow.figures.style import SHOWN, STYLE, color_of
from fastflow.figures.tiles import tile
from fastflow.models import ClassBound

Kind = int | str  # a class, or the name of one of TzK's knowledge types


def all_classes(model: nn.Module) -> list[int] | None:
    """Every class of a model, None for one without classes."""
    return list(range(model.classes)) if model.classes > 1 else None


def kinds(model: nn.Module) -> list[Kind] | None:
    """What there are samples of: TzK's knowledge types, else classes, the first `SHOWN`; None: of p(x) alone."""
    return (list(getattr(model, "knowledge", ())) or all_classes(model) or [])[:SHOWN] or None


def draw_samples(model: nn.Module, kinds: list[Kind] | None, count: int, *, seed: int,
                 temperature: float = 1.0) -> Tensor:
    """Samples [len(kinds), count, *shape] on the CPU, images in [0, 1], `count` of each kind, by `seed`.

    kinds None: of p(x), [1, count, *shape].
    """
    if count < 1:
        raise ValueError(f"sample: count is {count}, expected at least 1")
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    drawn = [_draw(model, kind, count, temperature, generator) for kind in kinds or [None]]
    return torch.stack(drawn).cpu()


def samples_that_are_finite(model: nn.Module, count: int, *, seed: int) -> tuple[Tensor, list[Kind] | None]:
    """`draw_samples` of all `kinds` that have finite ones, and these kinds; others are named on stderr.

    Raises FloatingPointError where none has.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    drawn = {}
    for kind in kinds(model) or [None]:
        try:
            drawn[kind] = _draw(model, kind, count, 1.0, generator).cpu()
        except FloatingPointError as error:
            failure = error
            print(f"fastflow: no samples of {kind}: {error}", file=sys.stderr)
    if not drawn:
        raise failure
    return torch.stack(list(drawn.values())), None if None in drawn else list(drawn)


def _draw(model: nn.Module, kind: Kind | None, count: int, temperature: float, generator: torch.Generator) -> Tensor:
    given = {} if kind is None else {"y": kind}  # M1's `sample` takes none
    return model.sample(count, temperature=temperature, generator=generator, **given)


def save_samples(model: nn.Module, path: Path, label: int | None, count: int, *, seed: int, temperature: float) -> None:
    """Draws `count` samples of class `label`, or of each, into a .png picture or an .npz of samples and labels.

    The .npz has `images`, in grey levels or, of a model that has none (M1, M2), means in [0, 1]; or `features`. Raises
    ValueError for another ending, for a label where the model has no classes, for a picture of vectors that are not
    points of the plane.
    """
    if path.suffix not in (".png", ".npz"):
        raise ValueError(f"sample: out is {path}, expected a name that ends in .png or .npz")
    if label is not None and model.classes == 1:
        raise ValueError(f"sample: label is {label}, but the model has no classes; leave it out")
    images = len(model.shape) == 3
    if path.suffix == ".png" and not images and model.shape != (2,):
        raise ValueError(f"sample: out is {path}, but there is no picture of vectors of shape {tuple(model.shape)}; "
                         "expected a name that ends in .npz")
    classes = all_classes(model) if label is None else [label]
    drawn = draw_samples(model, classes, count, seed=seed, temperature=temperature)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        with matplotlib.rc_context(STYLE):
            (samples if images else sample_points)(drawn, classes, title_of(model, temperature)).savefig(path)
    else:
        rows = drawn.flatten(0, 1)
        if getattr(model, "dequantize", None) is not None:
            rows = model.dequantize.inverse(rows).to(torch.uint8)
        labels = {"labels": np.repeat(classes, count)} if classes else {}
        np.savez_compressed(path, **{"images" if images else "features": rows.numpy()}, **labels)


def title_of(model: nn.Module, temperature: float = 1.0) -> str:
    """What `model.sample` draws."""
    what = "means of $p(x|z)$ at sampled $z$" if isinstance(model, ClassBound) else "samples"
    return f"{what}, temperature {temperature:g}"


def samples(images: Tensor, kinds: list[Kind] | None, title: str) -> Figure:
    """A row of `images` [rows, columns, C, H, W] in [0, 1] for each of `kinds`, or one row."""
    rows, columns = images.shape[:2]
    wide = max((len(str(kind)) for kind in kinds or []), default=0)
    figure = Figure(figsize=(max(3.0, 0.5 * columns + 0.8) + 0.06 * wide, 0.5 * rows + 0.6))
    axes = figure.subplots()
    tile(axes, images)
    axes.set_xticks([])
    if kinds:
        axes.set_yticks(axes.get_yticks(), [str(kind) for kind in kinds])
        axes.set_ylabel("class" if isinstance(kinds[0], int) else "")
    else:
        axes.set_yticks([])
    axes.set_title(title, loc="left")
    return figure


def sample_points(points: Tensor, classes: list[Kind] | None, title: str) -> Figure:
    """Samples [rows, columns, 2] in the plane, a colour for each of `classes`."""
    figure = Figure(figsize=(5, 4.4))
    axes = figure.subplots()
    scatter_samples(axes, points, classes)
    axes.set_aspect("equal", adjustable="datalim")
    if classes:
        axes.legend(title="class", frameon=False, markerscale=2)
    axes.set_title(title, loc="left")
    return figure


def scatter_samples(axes: Axes, points: Tensor, classes: list[Kind] | None) -> None:
    for place, of_class in enumerate(points):
        kind = classes[place] if classes else 0
        axes.scatter(*of_class.T, s=6, linewidths=0, alpha=0.7, color=color_of(kind if classes else 7), label=str(kind))
