"""Pictures of a run: training curves, samples of each class, label swaps, latents, confusions."""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from sklearn.manifold import TSNE
from torch import Tensor

from fastflow.data import ImageData
from fastflow.models import SCNF
from fastflow.training.evaluate import ROWS, evaluate
from fastflow.training.record import read_metrics
from fastflow.training.restore import Restored
from fastflow.training.run import METRICS

POINTS = 2000  # test images in the picture of the latents, at most
FEW = 5  # fewer have no neighbourhoods to draw
PER_CLASS = 10  # samples in a row
COLORS = matplotlib.colormaps["tab10"].colors
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
}
LINES = {  # name: the lines of metrics.jsonl it is drawn from, and how
    "unlabelled": ("train", {"linestyle": "-", "linewidth": 1.2}),
    "labelled": ("train", {"linestyle": ":", "linewidth": 1.5}),
    "monitored": ("monitor", {"linestyle": "-", "linewidth": 1.2, "marker": ".", "markersize": 5}),
    "test, at the end": ("test", {"linestyle": "", "marker": "o", "markersize": 5}),
}
PANELS = {
    "training: $-\\log\\,p$, nats an image": {"unlabelled": "nll_unlabelled", "labelled": "nll_labelled"},
    "bits/dim": {"monitored": "bits_per_dim", "test, at the end": "bits_per_dim"},
    "error, %": {"monitored": "error", "test, at the end": "error"},
    "$-\\log\\,p(y|x)$, nats an image": {
        "labelled": "cross_entropy",
        "monitored": "cross_entropy",
        "test, at the end": "cross_entropy",
    },
}
PANELS_WITHOUT_CLASSES = {
    "training: $-\\log\\,p$, nats an image": {"unlabelled": "nll_unlabelled"},
    "bits/dim": PANELS["bits/dim"],
}


def draw_figures(runs: list[Restored], folder: Path) -> list[Path]:
    """Draws every figure of the restored seeds of one run into `folder`; returns the PNG files.

    A model without classes has curves and samples alone. Test images are shown and measured here, after training, and
    choose nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(STYLE):
        metrics = runs[0].folder / METRICS if runs[0].folder else None
        if metrics and metrics.exists():
            watched = "held out" if runs[0].config.data.hold_out else "unlabelled training images"
            panels = PANELS if runs[0].model.classes > 1 else PANELS_WITHOUT_CLASSES
            paths.append(_save(curves(read_metrics(metrics), panels, watched), folder / "curves.png"))
        data = runs[0].load_data()
        for run in runs:
            classes = all_classes(run.model)
            pictures = {"samples": samples(draw_samples(run.model, classes, PER_CLASS, seed=run.seed), classes, 1.0)}
            if classes:
                pictures["label-swaps"] = label_swaps(run.model, data)
                if len(data.test_images) >= FEW and run.model.head.features > 1:
                    pictures["latents"] = latents(run.model, data)
                else:
                    print(f"fastflow: no picture of the latents: {len(data.test_images)} test images with "
                          f"{run.model.head.features} latents each, expected at least {FEW} with 2", file=sys.stderr)
                pictures["confusion"] = confusion(run.model, data, seed=run.seed)
            paths += [_save(figure, folder / f"{name}-seed-{run.seed}.png") for name, figure in pictures.items()]
    return paths


def curves(lines: list[dict], panels: dict[str, dict[str, str]], watched: str) -> Figure:
    """What `panels` name (PANELS, say) over the steps, a colour a seed, from the lines of a run.

    `watched` is what to call the monitored images.
    """
    rows = len(panels) // 2
    figure = Figure(figsize=(9, 3 * rows))
    seeds = sorted({line["seed"] for line in lines})
    colors = {seed: COLORS[number % len(COLORS)] for number, seed in enumerate(seeds)}
    for panel, (title, drawn) in zip(figure.subplots(rows, 2, sharex=True).flat, panels.items(), strict=True):
        for name, metric in drawn.items():
            split, style = LINES[name]
            for seed, color in colors.items():
                of_seed = [line for line in lines if line["seed"] == seed and line["split"] == split]
                panel.plot([line["step"] for line in of_seed], [line[metric] for line in of_seed], color=color, **style)
        panel.set_title(title, loc="left")
        panel.grid(alpha=0.25)
        names = [watched if name == "monitored" else name for name in drawn]
        panel.legend([Line2D([], [], color="0.3", **LINES[name][1]) for name in drawn], names, frameon=False)
    figure.supxlabel("step", fontsize=9)
    if len(seeds) > 1:
        names = [f"seed {seed}" for seed in seeds]
        figure.legend([Line2D([], [], color=color) for color in colors.values()], names, loc="outside right center",
                      frameon=False)
    return figure


def all_classes(model: SCNF) -> list[int] | None:
    """Every class of a model, None for one without classes."""
    return list(range(model.classes)) if model.classes > 1 else None


def samples(images: Tensor, classes: list[int] | None, temperature: float) -> Figure:
    """A row of `images` [rows, columns, C, H, W] in [0, 1] for each of `classes`, or one row."""
    rows, columns = images.shape[:2]
    figure = Figure(figsize=(max(3.0, 0.5 * columns + 0.8), 0.5 * rows + 0.6))
    axes = figure.subplots()
    _tile(axes, images)
    if classes:
        axes.set_yticklabels(classes)
        axes.set_ylabel("class")
    else:
        axes.set_yticks([])
    axes.set_xticks([])
    axes.set_title(f"samples, temperature {temperature:g}", loc="left")
    return figure


def draw_samples(
    model: SCNF, classes: list[int] | None, count: int, *, seed: int, temperature: float = 1.0
) -> Tensor:
    """Images [len(classes), count, C, H, W] in [0, 1] on the CPU, `count` of each class, by `seed`.

    Without classes [1, count, C, H, W].
    """
    if count < 1:
        raise ValueError(f"sample: count is {count}, expected at least 1")
    device = next(model.parameters()).device
    labels = torch.tensor(classes, device=device).repeat_interleave(count) if classes else None
    generator = torch.Generator(device).manual_seed(seed)
    rows = len(classes) if classes else 1
    images = model.sample(rows * count, labels, temperature=temperature, generator=generator)
    return images.view(rows, count, *images.shape[1:]).cpu()


def save_samples(model: SCNF, path: Path, label: int | None, count: int, *, seed: int, temperature: float) -> None:
    """Draws `count` images of class `label`, or of each, into a .png picture or an .npz of grey levels and labels.

    Raises ValueError for another ending, or for a label where the model has no classes.
    """
    if path.suffix not in (".png", ".npz"):
        raise ValueError(f"sample: out is {path}, expected a name that ends in .png or .npz")
    if label is not None and model.classes == 1:
        raise ValueError(f"sample: label is {label}, but the model has no classes; leave it out")
    classes = all_classes(model) if label is None else [label]
    images = draw_samples(model, classes, count, seed=seed, temperature=temperature)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        with matplotlib.rc_context(STYLE):
            _save(samples(images, classes, temperature), path)
    else:
        levels = model.dequantize.inverse(images.flatten(0, 1)).to(torch.uint8)
        labels = {"labels": np.repeat(classes, count)} if classes else {}
        np.savez_compressed(path, images=levels.numpy(), **labels)


def label_swaps(model: SCNF, data: ImageData) -> Figure:
    """One test image of each class (rows), as it would look with each label (columns): same z_aux and z_h."""
    device = next(model.parameters()).device
    rows = [int((data.test_labels == label).nonzero()[0]) for label in range(data.classes) if label in data.test_labels]
    images, labels = data.test_images[rows].to(device), data.test_labels[rows].to(device)
    swapped = torch.stack([model.reconstruct(images, y, source=labels) for y in range(data.classes)], dim=1)
    figure = Figure(figsize=(0.5 * data.classes + 1.6, 0.5 * len(rows) + 0.9))
    left, right = figure.subplots(1, 2, width_ratios=[1, data.classes])
    _tile(left, (images[:, None].cpu() + 0.5) / data.levels)
    left.set_xticks(left.get_xticks(), ["input"])
    left.set_yticklabels(labels.tolist())
    left.set_ylabel("class")
    left.xaxis.tick_top()
    _tile(right, swapped.cpu())
    right.set_title("decoded with label (framed: its own)", loc="left")
    right.xaxis.tick_top()
    _, height, width = data.shape
    for y, label in zip(right.get_yticks(), labels.tolist(), strict=True):
        corner = (right.get_xticks()[label] - width / 2, y - height / 2)
        right.add_patch(Rectangle(corner, width, height, fill=False, color=COLORS[0], linewidth=1.5))
    right.set_yticks([])
    return figure


@torch.no_grad()
def latents(model: SCNF, data: ImageData) -> Figure:
    """t-SNE of z_f, which the class explains, and of z_h, which should hold nothing of it, of test images."""
    device = next(model.parameters()).device
    images, labels = data.test_images[:POINTS], data.test_labels[:POINTS]
    batches = zip(images.to(device).split(ROWS), labels.to(device).split(ROWS), strict=True)
    embedded = [torch.cat(part).cpu().numpy() for part in zip(*(model.embed(*batch) for batch in batches), strict=True)]
    figure = Figure(figsize=(9, 4.4))
    panels = figure.subplots(1, 2)
    titles = ("$z_f$: what the class head sees", "$z_h$: what the class leaves unexplained")
    for panel, points, title in zip(panels, embedded, titles, strict=True):
        perplexity = min(30.0, (len(points) - 1) / 3)
        places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
        for label in range(data.classes):
            of_class = places[labels.numpy() == label]
            panel.scatter(*of_class.T, s=9, color=COLORS[label % len(COLORS)], label=str(label), linewidths=0)
        panel.set_title(title, loc="left")
        panel.axis("off")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, title="class",
                  markerscale=2)
    return figure


def confusion(model: SCNF, data: ImageData, seed: int) -> Figure:
    """Counts of test images by true and predicted class."""
    device = next(model.parameters()).device
    result = evaluate(model, data.test_images.to(device), data.test_labels.to(device), levels=data.levels, seed=seed)
    counts = np.array(result["confusion"])
    figure = Figure(figsize=(5, 4.6))
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(1, keepdims=True).clip(min=1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = count > 0.5 * counts[row].sum()
            axes.text(column, row, count, ha="center", va="center", color="white" if dark else "black", fontsize=8)
    axes.set_title(f"{len(data.test_labels)} test images, error {result['error']:.2f} %", loc="left")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_xticks(range(data.classes))
    axes.set_yticks(range(data.classes))
    return figure


def _tile(axes: Axes, images: Tensor) -> None:
    """Shows images [rows, columns, C, H, W] in [0, 1] as a table with a tick at each row and column."""
    rows, columns, channels, height, width = images.shape
    gap = max(1, height // 8)
    page = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for row in range(rows):
        for column in range(columns):
            image = images[row, column].permute(1, 2, 0).numpy()
            y, x = row * (height + gap), column * (width + gap)
            page[y : y + height, x : x + width] = image if channels == 3 else 1 - image[..., :1]
    axes.imshow(page, interpolation="nearest")
    axes.set_xticks([column * (width + gap) + (width - 1) / 2 for column in range(columns)], range(columns))
    axes.set_yticks([row * (height + gap) + (height - 1) / 2 for row in range(rows)], range(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
