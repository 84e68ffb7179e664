"""Measures cases: every provider interleaved with a copy of the same bytes, at each number of threads."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch

from fastflow import _backend
from fastflow.bench import watching
from fastflow.bench.cases import OPS, Case
from fastflow.bench.lists import cuda_targets
from fastflow.bench.overhead import overhead
from fastflow.bench.providers import prepare, serves
from fastflow.bench.timing import measure, peak_memory, threads
from fastflow.bench.traffic import traffic

# bytes moved by the copy and size of the square matrices that measure a device
RATES = {"cpu": (2**28, 1024), "cuda": (2**31, 8192)}


def run(cases: Iterable[Case], rivals: Iterable[str], thread_counts: Iterable[int], *, device: str = "cpu",
        seconds: float = 1.0, memory: bool = False) -> Iterator[dict]:
    """Yields one result for each number of threads and case, as it is measured; `seconds` is spent on each.

    A result holds the case's fields, `threads`, `bytes` and `flops` (minimum), `eager_bytes` (what eager moves),
    `copy_seconds` and `copy_spread` (of a copy of that many bytes, half read, half written), where it is a target
    `matrix_seconds` and `matrix_spread` (of that many flops in a large float32 product), `providers` {name: seconds,
    spread, blocks, and with `memory` peak_bytes}, `failed` {rival: why it could not be measured},
    `disturbance`, `targets`, and `backend`, the one that served this library's call: on CUDA its kernel, proved or not.
    A small case of the GPU figures also has `overhead`, by `overhead.overhead`.
    """
    cases = list(cases)
    for count in thread_counts:
        for case in cases:
            with threads(count), _backend.backend(kernel_of(case.op, device)):
                result = _measured(case, rivals, count, device, seconds, memory)
            yield result


def kernel_of(op: str, device: str) -> str:
    # On CUDA the automatic choice is the reference until a record, such as the one being made here, proves the kernel.
    op = OPS[op].entry or op
    kernel = watching.ops()[op].on_cuda if device == "cuda" and op in watching.ops() else None
    usable = kernel is not None and _backend.state(kernel).status != "unavailable"
    return kernel if usable else _backend.forced() or "auto"


def _measured(case: Case, rivals: Iterable[str], count: int, device: str, seconds: float, memory: bool) -> dict:
    on_cuda = torch.device(device).type == "cuda"
    calls, failed = {"fastflow": prepare("fastflow", case, device)}, {}
    for name in (name for name in rivals if serves(name, case)):
        with _noting(failed, name):
            calls[name] = _tried(prepare(name, case, device))
    eager_bytes = traffic(calls["eager"]) if "eager" in calls else None
    targets = cuda_targets(case, eager_bytes or 0) if on_cuda else case.targets
    yardsticks = {"copy": copy_call(case.bytes, device)}
    if "matrix" in targets:
        yardsticks["matrix"] = matrix_call(device)
    timings, disturbance = measure(calls | yardsticks, seconds, device)
    measured = {name: timings.pop(name) for name in yardsticks}
    providers = {name: asdict(timing) for name, timing in timings.items()}
    if memory:
        for name, call in calls.items():
            providers[name]["peak_bytes"] = peak_memory(call, device)
    with watching.watch(device) as served:
        calls["fastflow"]()
    result = {
        **asdict(case), "size": case.size, "regime": case.regime, "threads": count, "device": device,
        "backend": served.get(_entry(case), "plain PyTorch"),
        "bytes": case.bytes, "flops": case.flops, "eager_bytes": eager_bytes,
        "copy_seconds": measured["copy"].seconds, "copy_spread": measured["copy"].spread, "providers": providers,
        "failed": failed, "disturbance": asdict(disturbance) | {"reason": disturbance.reason},
    }
    if "matrix" in measured:
        share = case.flops / matrix_flops(device)
        result |= {"matrix_seconds": measured["matrix"].seconds * share, "matrix_spread": measured["matrix"].spread}
    if on_cuda and targets and case.regime == "small":
        with _noting(failed, "overhead"):
            result["overhead"] = overhead(case, device, seconds)
    return result | {"targets": {name: ratio for name, ratio in targets.items() if name in (*providers, *yardsticks)}}


def _entry(case: Case) -> str:
    """The dispatcher's name for what is measured."""
    name = OPS[case.op].entry or case.op
    return f"{name}_backward" if case.direction == "backward" else name


@contextmanager
def _noting(failed: dict[str, str], name: str) -> Iterator[None]:
    """A rival that cannot be measured, for want of memory or of its compiler, is named and left out."""
    try:
        yield
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"[:500]


def _tried(call: Callable) -> Callable:
    call()
    return call


def copy_call(size: int, device: str = "cpu") -> Callable[[], torch.Tensor]:
    """A copy that moves `size` bytes: half of them read, half of them written."""
    source = torch.ones(max(1, size // 8), device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def matrix_call(device: str = "cpu") -> Callable[[], torch.Tensor]:
    """A float32 matrix product of `matrix_flops`."""
    size = RATES[device][1]
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    return lambda: torch.mm(left, right)


def matrix_flops(device: str = "cpu") -> int:
    """Additions and multiplications of `matrix_call`."""
    return 2 * RATES[device][1] ** 3


def machine_rates(thread_counts: Iterable[int], device: str = "cpu", seconds: float = 1.0) -> dict[str, dict]:
    """{threads: {copy_bytes_per_second, matrix_flops_per_second}} of a large copy and a float32 product, here, now."""
    moved = RATES[device][0]
    calls = {"copy": copy_call(moved, device), "matrix": matrix_call(device)}
    rates = {}
    for count in thread_counts:
        with threads(count):
            timings, _ = measure(calls, seconds, device)
        rates[str(count)] = {"copy_bytes_per_second": moved / timings["copy"].seconds,
                             "matrix_flops_per_second": matrix_flops(device) / timings["matrix"].seconds}
    return rates
