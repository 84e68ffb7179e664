"""What a training step of a recipe costs: median milliseconds and rows a second, on the device it would train on.

    python benchmarks/recipe_steps.py configs/*-mnist.yaml --record 46c05d1

Prints a line a recipe and a number of threads; --record keeps them as of that commit, in
benchmarks/records/recipe_steps_cpu.json (or _cuda), which docs/results.md is written from. Steps are taken, weights are
lost.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from fastflow.bench import record
from fastflow.training.batches import Batches
from fastflow.training.build import build_model, choose_device, load_data, split
from fastflow.training.config import Config
from fastflow.training.config_file import load_config
from fastflow.training.loop import take_step
from fastflow.training.start import initialize
from fastflow.training.state import TrainingState

RECORDS = Path(__file__).parent / "records"


def begin(config: Config) -> tuple[TrainingState, Batches]:
    """The state of a run before its first step. An M1+M2 has an untrained M1, all of whose latents count."""
    device, data = choose_device(config.device), load_data(config.data)
    batches = Batches(data, split(data, config.data, config.seed), config, config.seed, device)
    units = torch.arange(config.model.m1.latent) if config.model.kind == "m1m2" else None
    model = build_model(config.model, data.describe(), units).to(device)
    initialize(model, config.model, batches)
    return TrainingState(model.train(), config.optimizer), batches


def seconds(state: TrainingState, batches: Batches, config: Config, steps: int) -> list[float]:
    """Of each of `steps` steps, after one that is not counted."""
    taken = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        take_step(state, batches(state.step), config)
        if batches.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="YAML files")
    parser.add_argument("--steps", type=int, default=5, help="to time (default: 5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the CPU (default: 1 2)")
    parser.add_argument("--record", metavar="SHA", help="keep the times, as those of this commit")
    args = parser.parse_args()
    if args.steps < 1:
        parser.exit(2, f"{parser.prog}: --steps is {args.steps}, expected at least 1\n")
    torch.set_flush_denormal(True)
    found = []
    for path in args.configs:
        try:
            config = load_config(path)
            state, batches = begin(config)
        except (ValueError, OSError) as error:
            parser.exit(2, f"{parser.prog}: {error}\n")
        for threads in args.threads if batches.device.type == "cpu" else [1]:
            torch.set_num_threads(threads)
            taken = seconds(state, batches, config, args.steps)
            median, rows = statistics.median(taken), config.sampling.batch
            print(f"{path.stem:24} {batches.device.type}, {threads} thread(s): {1e3 * median:9.1f} ms a step "
                  f"({1e3 * min(taken):.1f} to {1e3 * max(taken):.1f}), {rows / median:9.1f} rows/s of {rows}",
                  flush=True)
            found.append({"recipe": path.stem, "threads": threads, "rows": rows, "steps": config.steps,
                          "milliseconds": [round(1e3 * each, 2) for each in taken]})
    if args.record:
        device = batches.device.type
        whole = {"device": record.describe_device(device), "torch": torch.__version__, "commit": args.record,
                 "steps": found}
        (RECORDS / f"recipe_steps_{device}.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
