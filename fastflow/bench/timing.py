"""One stopwatch for all: interleaved blocks of calls, medians, and a witness of whatever else the machine was doing."""

import gc
import os
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch

BLOCK_SECONDS = 2e-3
ROUNDS = (9, 201)
SLOW_ROUNDS = 3  # enough where they take ten times the seconds of a measurement
SLOW_CALL = 0.25  # seconds, from which on a call is a block and one warms up
ATTEMPTS = 3
NOISY_SPREAD = 0.15
NOISY_SHARE = 0.5
HOST_CALLS = 100  # a block, at most: the device's queue holds about a thousand kernels, and then the host waits
CUDA_CALLS = 50  # a block, at most: each has a flush of its own, which takes longer than a small call


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median over the undisturbed blocks, spread = interquartile range / median."""

    seconds: float
    spread: float
    blocks: int


@dataclass(frozen=True)
class Disturbance:
    """What happened beside the measurement: the share of blocks that the scheduler interrupted (involuntary context
    switches), the load average, and whether interruptions count in the time."""

    interrupted: float
    load: float
    wall_clock: bool

    @property
    def reason(self) -> str:
        """Why no time of this measurement is to be trusted; empty if nothing speaks against it."""
        if not self.wall_clock or self.interrupted <= NOISY_SHARE:
            return ""
        return f"{self.interrupted:.0%} of the blocks interrupted, load average {self.load:.1f}"


def summarize(blocks: list[tuple[float, int]]) -> Timing:
    """Median and spread of blocks (seconds of a call, interruptions): of those without interruption if most are."""
    quiet = [seconds for seconds, interruptions in blocks if not interruptions]
    kept = quiet if len(quiet) >= (1 - NOISY_SHARE) * len(blocks) else [seconds for seconds, _ in blocks]
    low, middle, high = statistics.quantiles(kept, n=4)
    return Timing(middle, (high - low) / middle, len(kept))


def measure(calls: dict[str, Callable[[], object]], seconds: float, device: str = "cpu",
            block: Callable[[Callable, int], float] | None = None) -> tuple[dict[str, Timing], Disturbance]:
    """Times all calls in turn, a block each, round after round for about `seconds`, after a warm-up. `block` replaces
    the device's stopwatch.

    On one CPU thread the clock is that thread's CPU time: the wall's on a quiet machine, and without what other
    processes took on a busy one. With more threads, which wait for each other, it is the wall's. A disturbed
    measurement is repeated, up to ATTEMPTS times; the least disturbed one is returned with its witness. What takes ten
    times its `seconds` ends after SLOW_ROUNDS.
    """
    block = block or _stopwatch(device)
    counts = {name: _calls_a_block(call, block) for name, call in calls.items()}
    attempts, give_up = [], time.perf_counter() + ATTEMPTS * seconds
    while True:
        timings, disturbance = _attempt(calls, counts, block, seconds)
        spread = max(timing.spread for timing in timings.values())
        attempts.append((disturbance.interrupted, spread, timings, disturbance))
        if (spread <= NOISY_SPREAD and not disturbance.reason) or time.perf_counter() > give_up:
            return min(attempts, key=lambda attempt: attempt[:2])[2:]


def _attempt(calls: dict, counts: dict, block: Callable, seconds: float) -> tuple[dict[str, Timing], Disturbance]:
    blocks = {name: [] for name in calls}
    with _no_collection():
        start = time.perf_counter()
        for done in range(ROUNDS[1]):
            spent = time.perf_counter() - start
            if (done >= ROUNDS[0] and spent > seconds) or (done >= SLOW_ROUNDS and spent > 10 * seconds):
                break
            for name, call in calls.items():
                before = _interruptions()
                blocks[name].append((block(call, counts[name]), _interruptions() - before))
    interrupted = statistics.fmean(bool(count) for values in blocks.values() for _, count in values)
    timings = {name: summarize(values) for name, values in blocks.items()}
    return timings, Disturbance(interrupted, os.getloadavg()[0], wall_clock=block is wall_block)


def _interruptions() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _calls_a_block(call: Callable, block: Callable) -> int:
    call()
    if block(call, 1) > SLOW_CALL:
        return 1
    for _ in range(2):
        call()
    count = max(1, round(BLOCK_SECONDS / min(block(call, 1) for _ in range(3))))
    return min(count, CUDA_CALLS) if block is cuda_block else count


def _stopwatch(device: str) -> Callable[[Callable, int], float]:
    if torch.device(device).type == "cuda":
        return cuda_block
    return thread_block if torch.get_num_threads() == 1 else wall_block


def wall_block(call: Callable, count: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, from `count` in a row.

    Where a block has several, one more comes first, untimed: a case that fits the cache is timed in the cache, from
    which the other providers have just driven its data.
    """
    if count > 1:
        call()
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) / count


def thread_block(call: Callable, count: int) -> float:
    """The same in CPU time of the calling thread."""
    return wall_block(call, count, time.thread_time)


def host_block(call: Callable, count: int) -> float:
    """Seconds that the host takes for one call on CUDA: the device gets its work and is not waited for."""
    torch.cuda.synchronize()
    seconds = wall_block(call, min(count, HOST_CALLS))
    torch.cuda.synchronize()
    return seconds


def cuda_block(call: Callable, count: int) -> float:
    """Seconds of one call by CUDA events, each call after its inputs were flushed out of the L2 cache.

    The flush reads four times the L2: a write would leave lines there that the call has to pay for. It also keeps the
    device busy while the host enqueues the call: launch latency counts only where the host is slower than that.
    """
    scratch = torch.empty(torch.cuda.get_device_properties().L2_cache_size, dtype=torch.float32, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        scratch.max()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return sum(start.elapsed_time(end) for start, end in events) / count / 1e3


@contextmanager
def _no_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def threads(count: int):
    """PyTorch's CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(call: Callable[[], object], device: str = "cpu") -> int:
    """Bytes allocated by one call at its worst moment, its outputs included, its inputs not."""
    call()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    # Resident memory would count what malloc keeps; the profiler sees every allocation of tensors, live.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        held = call()
    del held
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak
