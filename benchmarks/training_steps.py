"""Training steps side by side: interleaved times, and the live memory of each at its peak."""

from collections.abc import Callable
from typing import NamedTuple

from fastflow.bench.timing import Disturbance, Timing, measure, peak_memory


class Measured(NamedTuple):
    """`live` is in bytes, by the profiler's (on CUDA the allocator's) records: all that the step allocates, beyond what
    is known of it."""

    timing: Timing
    live: int


def compare(steps: dict[str, tuple[Callable[[], object], int]], seconds: float, device: str = "cpu",
            ) -> tuple[dict[str, Measured], Disturbance]:
    """Each step given as the call and the bytes known to live in it besides activations, like gradients it returns."""
    live = {name: peak_memory(call, device) - known for name, (call, known) in steps.items()}
    timings, disturbance = measure({name: call for name, (call, _) in steps.items()}, seconds, device)
    return {name: Measured(timings[name], live[name]) for name in steps}, disturbance
