"""The numbers that a run ends with."""

import statistics

COLUMNS = {"error": ("error %", ".2f"), "bits_per_dim": ("bits/dim", ".4f"), "cross_entropy": ("-log p(y|x)", ".4f")}


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(results: list[dict]) -> str:
    """One line a seed and, for several, their mean and deviation. `results` hold "seed" and what `evaluate` returns."""
    rows = [["", *(title for title, _ in COLUMNS.values())]]
    rows += [[f"seed {result['seed']}", *(format(result[name], style) for name, (_, style) in COLUMNS.items())]
             for result in results]
    if len(results) > 1:
        pairs = {name: mean_and_deviation([result[name] for result in results]) for name in COLUMNS}
        rows.append(["mean ± std", *(f"{pairs[name][0]:{style}} ± {pairs[name][1]:{style}}"
                                     for name, (_, style) in COLUMNS.items())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("  ".join(line) for line in lines)
