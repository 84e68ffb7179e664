"""Training a run: its seeds one after the other, each from its latest checkpoint if it has one."""

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import fastflow
from fastflow.data import write_split
from fastflow.training.batches import Batches
from fastflow.training.build import Data, build_model, choose_device, load_data, split
from fastflow.training.checkpoint import (
    FINAL,
    Checkpoint,
    latest,
    load_checkpoint,
    load_state,
    prune,
    save_checkpoint,
    step_folder,
)
from fastflow.training.config import Config
from fastflow.training.evaluate import evaluate
from fastflow.training.inputs import model_input
from fastflow.training.loop import fit
from fastflow.training.optimizer import build_optimizer
from fastflow.training.record import Recorder, read_metrics
from fastflow.training.run import METRICS, locked, record_config, require_run, seed_folder
from fastflow.training.start import initialize, of_seed, start_model
from fastflow.training.state import TrainingState


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """In it this thread, and threads that it makes, take denormal numbers for zero: Adam's squares of small gradients
    become such, and a CPU is slow with them. To be entered before PyTorch has made its threads, for all to agree."""
    flushed = not bool(torch.tensor(1e-310, dtype=torch.float64) * 1.0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


def prepare(config: Config, folder: Path | None = None) -> Data:
    """The data of a configuration, and every mistake in it that can be seen before a run folder exists.

    Seeds that have a checkpoint in `folder`, of a run to go on with, no longer need the pretrained weights.
    """
    data, device = load_data(config.data), choose_device(config.device)
    batches = Batches(data, split(data, config.data, config.seed), config, config.seed, device)
    seeds = range(config.seed, config.seed + config.seeds)
    if folder and all(latest(seed_folder(folder, seed)) for seed in seeds):
        return data
    if config.model.kind == "m1m2":
        for seed in seeds[1:]:
            of_seed(Path(config.pretrained), seed)
    model = start_model(config, data, config.seed).to(device)
    initialize(model, config.model, batches)
    build_optimizer(model, config.optimizer)
    with torch.no_grad():  # a backend that was asked for may not serve this model
        x = data.train_x[:2].to(device)
        model.class_scores(model_input(model, x, None, data.levels))
    return data


def train(config: Config, folder: Path, data: Data) -> list[dict]:
    """Trains every seed of `config` on `data` in the run `folder`, which may hold an earlier part of the same run.

    Returns for each seed its number, the training loss at the end, and what `evaluate` says of the final weights on the
    test set, which is used for nothing else.
    """
    require_run(folder)
    with locked(folder):
        record_config(folder, config)
        device, results, position = choose_device(config.device), [], 0
        for number, seed in enumerate(range(config.seed, config.seed + config.seeds), 1):
            final = seed_folder(folder, seed) / FINAL
            if not final.is_dir():
                title = f"seed {seed} ({number}/{config.seeds})"
                SeedRun(config, folder, data, seed, device).train(position, title)
            state = load_state(final)
            results.append({"seed": seed, "loss": state["loss"], **state["results"]})
            position = state["metrics_position"]
        return results


class SeedRun:
    """What one seed of a run determines: the split of the data, the batches, the folder of its checkpoints."""

    def __init__(self, config: Config, folder: Path, data: Data, seed: int, device: torch.device):
        self.config, self.folder, self.data, self.seed, self.device = config, folder, data, seed, device
        self.checkpoints, self.described = seed_folder(folder, seed), data.describe()
        self.split = split(data, config.data, seed)
        self.batches = Batches(data, self.split, config, seed, device)

    def train(self, position: int, title: str) -> None:
        """Goes on from the latest checkpoint, or starts; then metrics.jsonl is first cut back to `position`.

        Raises ValueError if that would lose lines which the seed does not write again.
        """
        torch.manual_seed(self.seed)
        prune(self.checkpoints, self.config.keep)
        newest = latest(self.checkpoints)
        if newest is None:
            self._require_lines_to_repeat(position, self.config.checkpoint_every)
            self._write_split()
            model = start_model(self.config, self.data, self.seed).to(self.device)
            initialize(model, self.config.model, self.batches)
            state = TrainingState(model, self.config.optimizer)
        else:
            checkpoint = load_checkpoint(newest)
            self._check(newest, checkpoint.state)
            model = build_model(self.config.model, self.described, checkpoint.tensors["model"].get("units"))
            state = TrainingState(model.to(self.device), self.config.optimizer)
            state.load(checkpoint.state["step"], checkpoint.tensors)
            position = checkpoint.state["metrics_position"]
            self._require_lines_to_repeat(position, self.config.steps)
        board = self.folder / "tensorboard" / f"seed-{self.seed}"
        recorder = Recorder(self.folder / METRICS, board, seed=self.seed, step=state.step, position=position)
        try:
            fit(
                state,
                self.batches,
                self.config,
                recorder=recorder,
                monitor=self._monitor,
                save=lambda: self._save_step(state, recorder),
                title=title,
            )
            results = self._evaluate(state.served, "test", slice(None))
            recorder.write(state.step, "test", results)
            tensors = {name: part for name, part in state.tensors().items() if name != "trainer"}
            ended = {"results": results, "loss": self._loss()}
            self._save(self.checkpoints / FINAL, state.step, tensors, recorder, ended)
        finally:
            recorder.close()

    def _require_lines_to_repeat(self, position: int, last: int) -> None:
        """Past `position` there may be lines of this seed up to step `last`; any other would be lost."""
        path = self.folder / METRICS
        for line in read_metrics(path, position) if path.exists() else []:
            if line.get("seed") != self.seed or not line.get("step", last + 1) <= last:
                raise ValueError(
                    f"{path}: going on with seed {self.seed} would cut off step {line.get('step')} of seed "
                    f"{line.get('seed')} for good; was its checkpoint in {self.checkpoints.parent} deleted? bring it "
                    "back, or start another run"
                )

    def _loss(self) -> float:
        """What the last steps minimised, on average: which of several restarts to choose."""
        of_seed = [line for line in read_metrics(self.folder / METRICS) if line["seed"] == self.seed]
        return [line["loss"] for line in of_seed if line["split"] == "train"][-1]

    def _monitor(self, model: nn.Module) -> dict | None:
        rows = torch.from_numpy(self.split.monitor)
        return self._evaluate(model, "train", rows) if len(rows) else None

    def _evaluate(self, model: nn.Module, part: str, rows: Tensor | slice) -> dict:
        stored = (getattr(self.data, f"{part}_{name}") for name in ("x", "labels", "groups"))
        x, labels, groups = (None if each is None else each[rows].to(self.device) for each in stored)
        return evaluate(model, x, labels, levels=self.data.levels, seed=self.seed, groups=groups)

    def _write_split(self) -> None:
        """splits/seed-N.npz, which `data.split` of another run takes: the same labelled rows."""
        path = self.folder / "splits" / f"seed-{self.seed}.npz"
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        write_split(path, self.split, self.data)

    def _save_step(self, state: TrainingState, recorder: Recorder) -> None:
        folder = step_folder(self.checkpoints, state.step)
        self._save(folder, state.step, state.tensors(), recorder)
        prune(self.checkpoints, self.config.keep)

    def _save(self, folder: Path, step: int, tensors: dict, recorder: Recorder, more: dict | None = None) -> None:
        state = {
            "step": step,
            "seed": self.seed,
            "randomness": "keyed by (seed, stream, step, row): step is the next one to draw for",
            "config": self.config.model_dump(),
            "data": self.described,
            "split": {"labelled": self.split.labelled.tolist(), "monitor": self.split.monitor.tolist()},
            "versions": _versions(self.device),
            "metrics_position": recorder.position(),
        }
        save_checkpoint(folder, Checkpoint(state | (more or {}), tensors))

    def _check(self, folder: Path, state: dict) -> None:
        """A resumed run must see the data, the split and, to be bit-exact, the software and threads it began with."""
        if state["data"] != self.described:
            raise ValueError(f"{folder}: trained on {state['data']}, but the data is now {self.described}")
        if state["split"]["labelled"] != self.split.labelled.tolist():
            raise ValueError(f"{folder}: the labelled rows differ from those chosen now; was scikit-learn updated?")
        now = _versions(self.device)
        changed = [f"{name} {then} is now {now[name]}" for name, then in state["versions"].items() if now[name] != then]
        if changed:
            tqdm.write(f"fastflow: resuming, but not bit for bit: {', '.join(changed)}", file=sys.stderr)


def _versions(device: torch.device) -> dict:
    return {
        "fastflow": fastflow.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
