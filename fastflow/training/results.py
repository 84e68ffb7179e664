"""The numbers that a run ends with."""

import statistics

import torch

from fastflow.training.evaluate import columns, evaluate
from fastflow.training.restore import Restored


def measure(run: Restored, split: str) -> dict:
    """What `evaluate` says of a restored model on "test", "monitor" or "train" (all its labelled images), and "seed".

    The noise is the training run's: the test set gives the very numbers that the run ended with.
    """
    data = run.load_data()
    part = "test" if split == "test" else "train"
    x, labels, groups = (getattr(data, f"{part}_{name}") for name in ("x", "labels", "groups"))
    rows = torch.tensor(run.monitor, dtype=torch.int64) if split == "monitor" else torch.arange(len(labels))
    rows = rows if split != "train" else rows[labels >= 0]
    if len(rows) == 0:
        why = "the run was trained with data.monitor = 0" if split == "monitor" else "no training image has a label"
        raise ValueError(f"seed {run.seed}: no images to evaluate on: {why}")
    x, labels, groups = (None if each is None else each[rows].to(run.device) for each in (x, labels, groups))
    return {"seed": run.seed, **evaluate(run.model, x, labels, levels=data.levels, seed=run.seed, groups=groups)}


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(results: list[dict]) -> str:
    """One line a seed and, for several, their mean and deviation. `results` hold "seed" and what `evaluate` returns."""
    shown = columns(results[0])
    rows = [["", *(title for title, _ in shown.values())]]
    rows += [[f"seed {result['seed']}", *(format(result[name], style) for name, (_, style) in shown.items())]
             for result in results]
    if len(results) > 1:
        pairs = {name: mean_and_deviation([result[name] for result in results]) for name in shown}
        rows.append(["mean ± std", *(f"{pairs[name][0]:{style}} ± {pairs[name][1]:{style}}"
                                     for name, (_, style) in shown.items())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line) for line in lines)
