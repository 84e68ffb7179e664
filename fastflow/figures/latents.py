"""Where a model puts test rows in its latent space, and which classes it takes them for."""

import sys

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor, nn

from fastflow.figures.rows import in_batches, test_rows
from fastflow.figures.style import SHOWN, color_of
from fastflow.training.build import Data

POINTS = 2000  # test rows in the picture of the latents, at most
FEW = 5  # fewer have no neighbourhoods to draw


def embedded(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """{name: latents [B, d]} of x as the model takes it; what depends on the class is of the true one."""
    if hasattr(model, "reconstruct"):
        if model.classes == 1:
            return {"z": model.embed(x)[0]}
        return dict(zip(("z_f", "z_h"), model.embed(x, labels), strict=True))
    if hasattr(model, "analogies"):
        return {"style": model.embed(x, labels)}
    return {"z": model.encode(x).z.flatten(1) if hasattr(model, "encode") else model.embed(x)}


TITLES = {
    "z_f": "$z_f$: what the class head sees",
    "z_h": "$z_h$: what the class leaves unexplained",
    "style": "style: the mean of $q(z|x, y)$, $y$ the true class",
    "z": "latents $z$",
}


def latents(model: nn.Module, data: Data) -> Figure | None:
    """Latents of test rows by class: as they are where there are two, with the class means; by t-SNE where there are
    more. None, and the reason on stderr, where there are fewer, or too few rows."""
    x, labels = (part[:POINTS] for part in test_rows(data))
    found = in_batches(lambda *rows: embedded(model, *rows), model, data, x, labels)
    width = min(z.shape[1] for z in found.values())
    if len(x) < FEW or width < 2:
        print(f"fastflow: no picture of the latents: {len(x)} test images with {width} latents each, expected at least "
              f"{FEW} with 2", file=sys.stderr)
        return None
    figure = Figure(figsize=(4.2 * len(found) + 0.8, 4.4))
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (name, z) in zip(panels, found.items(), strict=True):
        z = z.double().cpu().numpy()
        if z.shape[1] == 2:
            _scatter(panel, z, labels)
            if name != "z_h" and hasattr(getattr(model, "head", None), "means"):
                means = model.head.means.detach().cpu()
                panel.scatter(*means.T, s=140, marker="*", linewidths=1.0, edgecolors="black",
                              color=[color_of(label) for label in range(len(means))], zorder=3)
                panel.set_xlabel("stars: class means")
            panel.set_aspect("equal", adjustable="datalim")
            panel.set_title(TITLES[name], loc="left")
        else:
            tsne = TSNE(perplexity=min(30.0, (len(z) - 1) / 3), init="pca", random_state=0)
            _scatter(panel, tsne.fit_transform(z), labels)
            panel.set_title(f"{TITLES[name]} (t-SNE)", loc="left")
            panel.axis("off")
    if 1 < data.classes <= SHOWN:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, title="class",
                      markerscale=2)
    return figure


def confusion(model: nn.Module, data: Data) -> Figure:
    """Counts of test rows by true and predicted class."""
    x, labels = test_rows(data)
    predicted = in_batches(lambda rows: {"class": model.predict(rows)}, model, data, x)["class"].cpu()
    counts = np.zeros((data.classes, data.classes), int)
    np.add.at(counts, (labels.numpy(), predicted.numpy()), 1)
    few = data.classes <= SHOWN
    side = 1.6 + 0.34 * min(data.classes, SHOWN)
    figure = Figure(figsize=(max(3.4, side + 0.4), max(3.0, side)))
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(1, keepdims=True).clip(min=1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts) if few else ():
        if count:
            dark = count > 0.5 * counts[row].sum()
            axes.text(column, row, count, ha="center", va="center", color="white" if dark else "black", fontsize=8)
    error = 100 * (predicted != labels).double().mean().item()
    axes.set_title(f"{len(labels)} test rows, error {error:.2f} %", loc="left")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if few:
        axes.set_xticks(range(data.classes))
        axes.set_yticks(range(data.classes))
    return figure


def _scatter(panel: Axes, places: np.ndarray, labels: Tensor) -> None:
    for label in labels.unique().tolist():
        of_class = places[labels.numpy() == label]
        panel.scatter(*of_class.T, s=9, color=color_of(label), label=str(label), linewidths=0)
