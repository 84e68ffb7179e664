"""The numbers of metrics.jsonl over the steps."""

import math

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastflow.figures.style import color_of

SPLITS = {
    "train": {"linestyle": "-", "linewidth": 1.2},
    "monitor": {"linestyle": "-", "linewidth": 1.2, "marker": ".", "markersize": 5},
    "test": {"linestyle": "", "marker": "o", "markersize": 5},
}
TITLES = {  # metrics of one title share a panel; one that is not here has a panel of its own, titled by its name
    "nll_unlabelled": "training: $-\\log\\,p$, nats a row",
    "nll_labelled": "training: $-\\log\\,p$, nats a row",
    "nll": "$-\\log\\,p(x)$, nats a row",
    "bits_per_dim": "bits/dim",
    "bits_per_dim_bound": "bits/dim, at most",
    "nll_bound": "$-\\log\\,p(x)$, at most, nats a row",
    "error": "error, %",
    "cross_entropy": "$-\\log\\,p(y|x)$, nats a row",
    "view_cross_entropy": "$-\\log\\,p(y|x)$ of views, nats a row",
    "accuracy": "accuracy on the labelled rows of a batch",
    "pseudo_share": "share of rows with a pseudo-label",
    "bound_unlabelled": "training: lower bound on $\\log\\,p$, nats a row",
    "bound_labelled": "training: lower bound on $\\log\\,p$, nats a row",
    "consistency": "consistency loss",
    "agreement": "share of rows whose views agree",
    "knowledge": "TzK: $-\\log\\,M + \\log\\,p(T)$, nats a row",
    "penalty": "TzK: penalty, nats a row",
    "loss": "loss",
    "grad_norm": "norm of the gradient, before it is clipped",
}
NAMES = {"nll_unlabelled": "unlabelled", "nll_labelled": "labelled", "cross_entropy": "labelled",
         "bound_unlabelled": "unlabelled", "bound_labelled": "labelled"}
NOT_DRAWN = {"seed", "step", "split", "lr", "rows_per_second"}  # of the machine or the configuration, not the model
COLUMNS = 3


def curves(lines: list[dict], watched: str) -> Figure:
    """Every number in the lines of a run over the steps, a panel for each kind, a colour a seed.

    `watched` is what to call the monitored rows. What training writes and is always 0 is left out: a term without
    weight, or of rows that there are none of.
    """
    panels = _panels(lines)
    seeds = sorted({line["seed"] for line in lines})
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns + 1.2 * (len(seeds) > 1), 2.6 * rows + 0.2))
    axes = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for panel in axes[len(panels):]:
        panel.remove()
    for panel, (title, drawn) in zip(axes, panels.items(), strict=False):
        legend = {}
        for number, (metric, split) in enumerate(drawn):
            style = SPLITS[split] | ({"linestyle": ":"} if split == "train" and number else {})
            for place, seed in enumerate(seeds):
                of_seed = [line for line in lines if (line["seed"], line["split"]) == (seed, split) and metric in line]
                panel.plot([line["step"] for line in of_seed], [line[metric] for line in of_seed],
                           color=color_of(place), **style)
            name = {"monitor": watched, "test": "test, at the end"}.get(split, NAMES.get(metric, "training"))
            legend[name] = Line2D([], [], color="0.3", **style)
        panel.set_title(title, loc="left")
        panel.grid(alpha=0.25)
        panel.tick_params(labelbottom=True)
        panel.legend(legend.values(), legend.keys(), frameon=False, fontsize=8)
    figure.supxlabel("step", fontsize=9)
    if len(seeds) > 1:
        lines = [Line2D([], [], color=color_of(place)) for place in range(len(seeds))]
        figure.legend(lines, [f"seed {seed}" for seed in seeds], loc="outside right center", frameon=False)
    return figure


def _panels(lines: list[dict]) -> dict[str, list[tuple[str, str]]]:
    """{title: [(metric, split)]}, those that `TITLES` knows first and in its order."""
    found = {(metric, line["split"]) for line in lines for metric, value in line.items()
             if isinstance(value, int | float) and metric not in NOT_DRAWN and (value != 0 or line["split"] != "train")}
    metrics = [*TITLES, *sorted({metric for metric, _ in found} - TITLES.keys())]
    panels: dict[str, list[tuple[str, str]]] = {}
    for metric in metrics:
        for split in SPLITS:
            if (metric, split) in found:
                panels.setdefault(TITLES.get(metric, metric.replace("_", " ")), []).append((metric, split))
    return panels
