"""What a model of images makes of images: swaps, analogies, prototypes, interpolations, reconstructions, styles."""

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from fastflow.data import ImageData
from fastflow.figures.latents import POINTS, embedded
from fastflow.figures.rows import as_shown, in_batches, one_of_each_class, prepared, test_rows
from fastflow.figures.samples import all_classes, draw_samples
from fastflow.figures.style import COLORS, SHOWN
from fastflow.figures.tiles import frame, tile
from fastflow.models import style_plane

STEPS = 11  # of an interpolation, both ends included
PLANE = 7  # styles along each side of a plane
FEW = 10  # images in a row


def label_swaps(model: nn.Module, data: ImageData) -> Figure:
    """One test image of each class (rows), as it would look with each label (columns): same z_aux and z_h."""
    images, labels = one_of_each_class(data)
    x, source = prepared(model, data, images), labels.to(next(model.parameters()).device)
    swapped = [model.reconstruct(x, y, source=source) for y in range(min(data.classes, SHOWN))]
    return _with_every_class(data, images, labels, torch.stack(swapped, dim=1), "decoded with label (framed: its own)")


def analogies(model: nn.Module, data: ImageData) -> Figure:
    """One test image of each class (rows) and its style with each class (columns)."""
    images, labels = one_of_each_class(data)
    x, own = prepared(model, data, images), labels.to(next(model.parameters()).device)
    decoded = model.analogies(x, own)[:, :SHOWN]
    return _with_every_class(data, images, labels, decoded, "its style with each class (framed: its own)")


def prototypes(model: nn.Module) -> Figure:
    """The sample of each class at temperature 0: of FlowGMM, what the class means decode to."""
    images = draw_samples(model, all_classes(model)[:SHOWN], 1, seed=0, temperature=0.0)[:, 0]
    figure = Figure(figsize=(max(3.0, 0.6 * len(images) + 0.4), 1.3))
    axes = figure.subplots()
    tile(axes, images[None])
    axes.set_yticks([])
    axes.set_xlabel("class")
    axes.set_title("class prototypes: samples at temperature 0", loc="left")
    return figure


def interpolations(model: nn.Module, data: ImageData) -> Figure:
    """Images on straight lines in the latents, from a test image of each class to one of the next class.

    Of data without classes, from each of some test images to the next.
    """
    images, labels = one_of_each_class(data) if data.classes > 1 else (part[:FEW] for part in test_rows(data))
    between = model.interpolate(prepared(model, data, images), prepared(model, data, images.roll(-1, 0)), STEPS).cpu()
    figure = Figure(figsize=(0.5 * STEPS + 1.2, 0.5 * len(images) + 0.8))
    axes = figure.subplots()
    tile(axes, between.transpose(0, 1))
    axes.set_xticks(axes.get_xticks(), [f"{step / (STEPS - 1):.2g}" for step in range(STEPS)])
    pairs = zip(labels.tolist(), labels.roll(-1).tolist(), strict=True) if data.classes > 1 else ()
    axes.set_yticks(axes.get_yticks() if data.classes > 1 else [], [f"{first} → {second}" for first, second in pairs])
    axes.set_ylabel("classes of the two test images" if data.classes > 1 else "two test images a row")
    axes.set_xlabel("share of the second image's latents")
    axes.set_title("interpolations in latent space", loc="left")
    return figure


def reconstructions(model: nn.Module, data: ImageData) -> Figure:
    """Test images and what the mean of their latents decodes to."""
    images = test_rows(data)[0][:FEW]
    decoded = model.decode(model.embed(prepared(model, data, images))).cpu()
    figure = Figure(figsize=(0.5 * len(images) + 1.4, 1.5))
    axes = figure.subplots()
    tile(axes, torch.stack([as_shown(data, images), decoded]))
    axes.set_xticks([])
    axes.set_yticks(axes.get_yticks(), ["test image", "mean of $p(x|z)$"])
    axes.set_title("reconstructions from the mean of $q(z|x)$", loc="left")
    return figure


def style_planes(model: nn.Module, data: ImageData) -> Figure:
    """Fixed class, moving style: for each class the same grid of two style dimensions, all others 0.

    The two dimensions are those that vary most over test images: others may hold no more than their prior.
    """
    images, labels = test_rows(data)
    found = in_batches(lambda *rows: embedded(model, *rows), model, data, images[:POINTS], labels[:POINTS])
    dims = tuple(found["style"].std(0).topk(2).indices.tolist())
    z = style_plane(model.latent, PLANE, dims).to(next(model.parameters()))
    decoded = model.decode(z)[:, :SHOWN].transpose(0, 1).unflatten(1, (PLANE, PLANE)).cpu()  # [K, PLANE, PLANE, *shape]
    columns = min(5, len(decoded))
    rows = math.ceil(len(decoded) / columns)
    figure = Figure(figsize=(max(4.5, 2.0 * columns), 2.2 * rows + 0.5))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[len(decoded):]:
        panel.remove()
    for label, (panel, images) in enumerate(zip(panels, decoded, strict=False)):
        tile(panel, images)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(f"class {label}", loc="left")
    figure.suptitle(f"fixed class; down and across: style dimensions {dims[0]} and {dims[1]},\n"
                    "which vary most over test images, at equally probable steps", fontsize=10, x=0.01, ha="left")
    return figure


def styles(model: nn.Module, seed: int) -> Figure:
    """Fixed style, moving class: styles drawn from the prior (rows) with each class (columns)."""
    like = next(model.parameters())
    z = torch.randn(FEW, model.latent, generator=torch.Generator().manual_seed(seed)).to(like)
    decoded = model.decode(z)[:, :SHOWN].cpu()
    figure = Figure(figsize=(0.5 * decoded.shape[1] + 0.8, 0.5 * FEW + 0.8))
    axes = figure.subplots()
    tile(axes, decoded)
    axes.set_yticks([])
    axes.set_ylabel("a style $z$ of the prior in each row")
    axes.set_xlabel("class")
    axes.set_title("fixed style, each class", loc="left")
    return figure


def _with_every_class(data: ImageData, images: Tensor, labels: Tensor, decoded: Tensor, title: str) -> Figure:
    """Test images [B, *shape], and beside each what it becomes with every class, [B, K, *shape]; its own is framed."""
    rows, columns = decoded.shape[:2]
    figure = Figure(figsize=(0.5 * columns + 1.6, 0.5 * rows + 0.9))
    left, right = figure.subplots(1, 2, width_ratios=[1, columns])
    tile(left, as_shown(data, images)[:, None])
    left.set_xticks(left.get_xticks(), ["input"])
    left.set_yticks(left.get_yticks(), labels.tolist())
    left.set_ylabel("class")
    left.xaxis.tick_top()
    tile(right, decoded.cpu())
    right.set_title(title, loc="left")
    right.xaxis.tick_top()
    for row, label in enumerate(labels.tolist()):
        if label < columns:
            frame(right, row, label, data.shape, COLORS[0])
    right.set_yticks([])
    return figure
