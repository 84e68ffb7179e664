"""A model of points in the plane: data, decision regions, density and samples."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import nn

from fastflow.data import VectorData
from fastflow.figures.rows import in_batches
from fastflow.figures.samples import all_classes, draw_samples, scatter_samples, title_of
from fastflow.figures.style import color_of

GRID = 200  # points along each side
DRAWN = 1000  # samples
HELD = (0.99, 0.9, 0.5)  # shares of the test points that the contours hold


def points(model: nn.Module, data: VectorData, labelled: list[int], seed: int) -> Figure:
    """The training points, labelled ones marked, on p(y|x) as colour and contours of p(x); beside them samples.

    labelled  rows of the training set
    """
    classes = all_classes(model)
    figure = Figure(figsize=(9.6, 4.4))
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    everything = torch.cat([data.train_features, data.test_features])
    low, high = everything.min(0).values, everything.max(0).values
    middle, half = (low + high) / 2, 0.62 * (high - low).max()
    axes = [np.linspace(float(at - half), float(at + half), GRID) for at in middle]
    grid = torch.from_numpy(np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)).to(everything.dtype)
    if classes:
        _regions(left, model, data, grid, axes)
    if hasattr(model, "log_prob"):
        _contours(left, model, data, grid, axes)
    left.scatter(*data.train_features.T, s=4, color="0.35", alpha=0.5, linewidths=0, label="training points")
    if classes:
        rows = torch.tensor(labelled, dtype=torch.int64)
        colors = [color_of(label) for label in data.train_labels[rows].tolist()]
        left.scatter(*data.train_features[rows].T, s=60, color=colors, edgecolors="black", linewidths=1, zorder=3,
                     label="labelled")
    left.set_title("training points" + (", labelled ones large" if classes else ""), loc="left")
    shown = draw_samples(model, classes, -(-DRAWN // len(classes or [0])), seed=seed)
    scatter_samples(right, shown, classes)
    if classes:
        prototypes = draw_samples(model, classes, 1, seed=seed, temperature=0.0)[:, 0]
        right.scatter(*prototypes.T, s=140, marker="*", linewidths=1.0, edgecolors="black",
                      color=[color_of(label) for label in classes], zorder=3)
    right.set_title(title_of(model), loc="left")
    for panel in (left, right):
        panel.set_aspect("equal")
        panel.set_xlim(axes[0][0], axes[0][-1])
        panel.set_ylim(axes[1][0], axes[1][-1])
    handles = [Line2D([], [], marker="o", linestyle="", color=color_of(label)) for label in classes or []]
    names = [f"class {label}" for label in classes or []]
    if classes:
        handles.append(Line2D([], [], marker="*", linestyle="", markersize=11, color="0.7", markeredgecolor="black"))
        names.append("prototype (temperature 0)")
    if hasattr(model, "log_prob"):
        handles += [Line2D([], [], color="0.2", linewidth=0.8)]
        names += ["$p(x)$: holds " + ", ".join(f"{100 * share:g}" for share in reversed(HELD)) + "\n% of test points"]
    if handles:
        figure.legend(handles, names, loc="outside right center", frameon=False)
    return figure


def _regions(panel: Axes, model: nn.Module, data: VectorData, grid: torch.Tensor, axes: list) -> None:
    """The classes' colours, mixed by p(y|x) and paled."""
    proba = in_batches(lambda x: {"p": model.predict_proba(x)}, model, data, grid)["p"].double().cpu().numpy()
    colors = np.array([color_of(label) for label in range(model.classes)])
    image = 1 - 0.3 * (1 - proba @ colors)
    extent = (axes[0][0], axes[0][-1], axes[1][0], axes[1][-1])
    panel.imshow(image.reshape(GRID, GRID, 3).clip(0, 1), extent=extent, origin="lower", interpolation="bilinear")


def _contours(panel: Axes, model: nn.Module, data: VectorData, grid: torch.Tensor, axes: list) -> None:
    """Levels of log p(x) above which `HELD` of the test points lie."""
    density, of_test = (in_batches(lambda x: {"p": model.log_prob(x)}, model, data, x)["p"].double().cpu()
                        for x in (grid, data.test_features))
    levels = sorted({float(of_test.quantile(1 - share)) for share in HELD})
    density = density.clamp(min=levels[0] - 1)
    if levels := [level for level in levels if level < density.max()]:  # a narrow peak may lie between grid points
        panel.contour(*axes, density.view(GRID, GRID), levels=levels, colors="0.2", linewidths=0.8, linestyles="-")
