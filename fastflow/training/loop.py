"""The training loop: the same for every system."""

import signal
import threading
import time
from collections.abc import Callable

import torch
from torch import nn
from tqdm import tqdm

from fastflow.training.batches import Batch, Batches
from fastflow.training.config import Config
from fastflow.training.evaluate import summary
from fastflow.training.objectives import OBJECTIVES
from fastflow.training.optimizer import lr_factor, set_lr
from fastflow.training.randomness import seed_dropout
from fastflow.training.record import Recorder, require_finite
from fastflow.training.state import TrainingState


def fit(
    state: TrainingState,
    batches: Batches,
    config: Config,
    *,
    recorder: Recorder,
    monitor: Callable[[nn.Module], dict | None],
    save: Callable[[], None],
    title: str,
) -> None:
    """Takes `state` from the step it is at to `config.steps`.

    `monitor(model)` gives the progress figures (None for none), `save()` writes a checkpoint. An interrupt (Ctrl-C,
    SIGTERM) ends the step at hand, saves and raises KeyboardInterrupt. Raises FloatingPointError when the loss is no
    longer finite, before anything of it is saved.
    """
    state.model.train()
    size = config.sampling.batch
    bar = tqdm(
        total=config.steps * size, initial=state.step * size, desc=title, unit=" rows", unit_scale=True, disable=None
    )
    clock = Stopwatch()
    with bar, Interrupts() as interrupts:
        while state.step < config.steps:
            with clock:
                seed_dropout(batches.seed, state.step, batches.device)
                take_step(state, batches(state.step), config)
                bar.update(size)
                if _due(state, config, config.log_every):
                    bar.set_postfix_str(_log(state, recorder, clock, size))
            if _due(state, config, config.evaluate_every) and (figures := monitor(state.served)):
                recorder.write(state.step, "monitor", figures)
                kind = "held-out" if config.data.hold_out else "unlabelled training"
                bar.write(f"{title}: step {state.step}: {kind} rows: {summary(figures)}")
            if _due(state, config, config.checkpoint_every) or interrupts.received:
                _check_finite(state)
                save()
            if interrupts.received:
                raise KeyboardInterrupt


def take_step(state: TrainingState, batch: Batch, config: Config) -> None:
    """One update of weights and average on one batch; nothing is read back to the host."""
    set_lr(state.optimizer, lr_factor(config.schedule, state.step, config.steps))
    loss, parts = OBJECTIVES[config.model.kind](state, batch, config)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.optimizer.clip:
        parts["grad_norm"] = nn.utils.clip_grad_norm_(state.model.parameters(), config.optimizer.clip, foreach=True)
    state.optimizer.step()
    if state.average:
        state.average.update(state.step)
    state.step += 1
    state.add({"steps": torch.ones(()), "loss": loss.detach(), **parts})


def _due(state: TrainingState, config: Config, every: int) -> bool:
    return state.step % every == 0 or state.step == config.steps


def _log(state: TrainingState, recorder: Recorder, clock: "Stopwatch", size: int) -> str:
    """Writes the means since the last time; gives what the progress bar shows."""
    sums = {name: value.item() for name, value in state.sums.items()}
    steps = sums.pop("steps")
    means = {name: value / steps for name, value in sums.items()}
    means["lr"] = state.optimizer.param_groups[0]["lr"]
    means["rows_per_second"] = round(clock.lap() * size, 1)
    recorder.write(state.step, "train", means)
    state.sums.clear()
    return f"loss {means['loss']:.2f}"


def _check_finite(state: TrainingState) -> None:
    """One look at all weights before they replace good ones on disk."""
    norms = torch.stack(torch._foreach_norm([parameter.detach() for parameter in state.model.parameters()]))
    require_finite(state.step, "the norm of the weights", norms.sum().item())


class Stopwatch:
    """Times the blocks it is the context of."""

    def __init__(self):
        self._seconds, self._blocks = 0.0, 0

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *_):
        self._seconds += time.perf_counter() - self._start
        self._blocks += 1

    def lap(self) -> float:
        """Blocks a second since the last lap; 0 before a first block is complete."""
        rate = self._blocks / self._seconds if self._seconds else 0.0
        self._seconds, self._blocks = 0.0, 0
        return rate


class Interrupts:
    """While active, the first Ctrl-C or SIGTERM sets `received`; a second one acts at once."""

    def __init__(self):
        self.received = False
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        self._restore()

    def _note(self, *_) -> None:
        self.received = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
