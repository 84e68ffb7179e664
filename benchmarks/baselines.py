"""How classifiers without a flow do with the same few labels: the rows that every system's error stands beside.

    python benchmarks/baselines.py configs/scnf-glow-digits.yaml                     # on pixels or features
    python benchmarks/baselines.py configs/m1m2-digits.yaml --m1 runs/m1-digits      # on the latents of an M1

Each seed labels the rows that a training run of the configuration labels. Prints the error in percent of the test set.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from fastflow.data import Split
from fastflow.models import M1
from fastflow.models.feature_classifiers import CLASSIFIERS, feature_classifier
from fastflow.training.build import Data, load_data, split
from fastflow.training.config import Config
from fastflow.training.config_file import load_config
from fastflow.training.evaluate import ROWS
from fastflow.training.inputs import model_input
from fastflow.training.restore import restore
from fastflow.training.results import mean_and_deviation

SPREAD = 10_000  # label spreading's matrix is of rows squared


def features(x: Tensor, levels: int, m1: M1 | None) -> Tensor:
    """[N, D]: latents of an M1, or x flattened, grey levels in [0, 1]."""
    if m1 is not None:
        return torch.cat([m1.embed(model_input(m1, part, None, levels)) for part in x.split(ROWS)])
    return x.flatten(1).double() / max(1, levels - 1)


def trained_m1(run: Path, data: Data) -> M1:
    """The model of the first seed of an M1's run on this data."""
    restored = restore(run, "cpu")[0]
    if not isinstance(restored.model, M1) or restored.data != data.describe():
        raise ValueError(f"{run}: a run of {restored.config.model.kind} on {restored.data['name']}, expected m1 on "
                         f"{data.name}")
    return restored.model


def errors(data: Data, config: Config, seed: int, m1: M1 | None) -> dict[str, float]:
    """Test error in percent of each classifier."""
    rows = split(data, config.data, seed)
    labels = torch.full_like(data.train_labels, -1)
    labels[rows.labelled] = data.train_labels[rows.labelled]
    train, test = (features(x, data.levels, m1) for x in (data.train_x, data.test_x))
    known, found = data.test_labels >= 0, {}
    for kind in CLASSIFIERS:
        seen = _some(rows) if kind == "label_spreading" else slice(None)
        predicted = feature_classifier(kind, train[seen], labels[seen]).predict(test.double().numpy())
        wrong = torch.from_numpy(predicted) != data.test_labels
        found[kind] = 100.0 * wrong[known].double().mean().item()
    return found


def _some(rows: Split) -> Tensor:
    """The labelled rows, and as many of the others as label spreading can hold."""
    unlabelled = torch.from_numpy(rows.unlabelled)[: SPREAD - len(rows.labelled)]
    return torch.cat([torch.from_numpy(rows.labelled), unlabelled])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file that names data and labels")
    parser.add_argument("--seeds", type=int, default=3, help="label seeds, from the configuration's on (default: 3)")
    parser.add_argument("--m1", type=Path, metavar="RUN", help="classify the latents of this M1")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change keys of the configuration")
    args = parser.parse_args()
    try:
        config = load_config(args.config, args.set)
        if args.seeds < 1:
            raise ValueError(f"--seeds is {args.seeds}, expected at least 1")
        data = load_data(config.data)
        m1 = trained_m1(args.m1, data) if args.m1 else None
        found = [errors(data, config, config.seed + number, m1) for number in range(args.seeds)]
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    for kind in CLASSIFIERS:
        mean, deviation = mean_and_deviation([result[kind] for result in found])
        each = ", ".join(f"{result[kind]:.2f}" for result in found)
        print(f"{kind:16} {mean:6.2f} ± {deviation:.2f}   ({each})")


if __name__ == "__main__":
    main()
