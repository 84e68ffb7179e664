"""Keeps what a finished run of a recipe reached: a record that docs/results.md is written from.

    python benchmarks/recipe_results.py runs/m2-digits m2-digits --commit eba6201

Writes benchmarks/records/recipes/NAME.json: the device, on which this is to be called, versions, commit, configuration,
and of each finished seed the results on the test set, the loss at the end, the last figures of monitored rows, if there
are any, and the minutes that its steps took.
"""

import argparse
import json
from pathlib import Path

import yaml

from fastflow.bench import record
from fastflow.training.checkpoint import FINAL, load_state
from fastflow.training.record import read_metrics
from fastflow.training.run import METRICS

RECORDS = Path(__file__).parent / "records/recipes"


def describe(run: Path, commit: str) -> dict:
    """The record of a run. Raises ValueError where no seed is finished."""
    states = [load_state(folder) for folder in sorted(run.glob(f"checkpoints/seed-*/{FINAL}"))]
    if not states:
        raise ValueError(f"{run}: no finished seed, expected a run that fastflow train has ended")
    versions = states[0]["versions"]
    metrics, seeds = read_metrics(run / METRICS), []
    for state in states:
        lines = [line for line in metrics if line["seed"] == state["seed"]]
        found = {"seed": state["seed"], "loss": state["loss"], **kept(state["results"])}
        if monitored := [line for line in lines if line["split"] == "monitor"]:
            found["monitor"] = kept(monitored[-1])
        seeds.append(found | {"minutes": minutes([line for line in lines if line["split"] == "train"],
                                                 state["config"]["sampling"]["batch"])})
    return {"device": record.describe_device("cpu" if versions["device"] == "cpu" else "cuda"), "versions": versions,
            "commit": commit, "config": yaml.safe_load((run / "config.yaml").read_text()), "seeds": seeds}


def kept(figures: dict) -> dict:
    """But for the confusion matrix, and what names a line of the metrics."""
    return {name: value for name, value in figures.items() if name not in ("confusion", "seed", "split")}


def minutes(lines: list[dict], batch: int) -> float:
    """What the steps of a seed took, by the speeds that it logged; evaluation is not in it."""
    seconds, step = 0.0, 0
    for line in lines:
        seconds += (line["step"] - step) * batch / line["rows_per_second"]
        step = line["step"]
    return round(seconds / 60, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("name", help="of the recipe, configs/NAME.yaml, and what was changed")
    parser.add_argument("--commit", required=True, help="the commit that trained it")
    args = parser.parse_args()
    try:
        found = describe(args.run, args.commit)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"{args.name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
