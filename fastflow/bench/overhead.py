"""What a small call costs: from Python, with its parts, and in a CUDA graph, where only the device's share is left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastflow import _backend
from fastflow.bench import watching
from fastflow.bench.cases import Case
from fastflow.bench.providers import prepare
from fastflow.bench.timing import host_block, measure

PROVIDERS = ("fastflow", "eager")
CALLS_A_GRAPH = 50
TARGETS = {"python": 20e-6, "graph": 3e-6}
EAGER_TARGET = 2.0


def overhead(case: Case, device: str, seconds: float) -> dict:
    """{"python", "graph": {provider: seconds of one call}, "parts": {part: seconds of this library's from Python}}.

    Parts: "door" is the public function down to the dispatcher (and for a backward autograd's engine), "dispatcher"
    PyTorch's and the choice of the backend, "launch" the launcher with Triton's or C++'s own work. On a CPU, where
    nothing is launched, "dispatcher" ends with the kernel; "graph" is there on CUDA only.
    """
    on_cuda = torch.device(device).type == "cuda"
    with as_proved():
        calls = {name: prepare(name, case, device) for name in PROVIDERS}
        inner = _inner_calls(calls["fastflow"])
        timings, _ = measure(calls | inner, seconds, device, host_block if on_cuda else None)
        host = {name: timing.seconds for name, timing in timings.items()}
        levels = ["fastflow", *inner]  # each with all that is below it
        below = [host[name] for name in levels[1:]] + [0.0]
        parts = {part: host[level] - rest
                 for part, level, rest in zip(("door", "dispatcher", "launch"), levels, below, strict=False)}
        result = {"python": {name: host[name] for name in PROVIDERS}, "parts": parts}
        if on_cuda:
            result["graph"] = _in_graph(case, seconds)
    return result


def _yes(name: str) -> bool:  # a Mock would cost more than what is measured
    return True


@contextmanager
def as_proved() -> Iterator[None]:
    """The automatic choice as it will be once a record has proved the kernels."""
    with _backend.backend("auto"), mock.patch.object(_backend, "kernel_serves", _yes):
        yield


def _inner_calls(call: Callable) -> dict[str, Callable]:
    """The last call of this library's dispatcher entries in `call`, alone, and its launcher alone, if there is one."""
    with torch.autograd.set_multithreading_enabled(False), _Catch() as caught:
        call()
    if caught.last is None:
        return {}
    overload, arguments = caught.last
    inner = {"to the dispatcher": lambda: overload(*arguments)}
    op = watching.ops().get(overload._opname)
    if op is not None and op.on_cuda and any(getattr(value, "is_cuda", False) for value in arguments):
        launcher = _backend.launcher(op.name, op.on_cuda)
        inner["to the launcher"] = lambda: launcher(*arguments)
    return inner


class _Catch(TorchDispatchMode):
    last = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastflow":
            self.last = func, args
        return func(*args, **(kwargs or {}))


def _in_graph(case: Case, seconds: float) -> dict[str, float]:
    replays = {name: _graph(case, name).replay for name in PROVIDERS}
    timings, _ = measure(replays, seconds, "cuda")
    return {name: timing.seconds / CALLS_A_GRAPH for name, timing in timings.items()}


def _graph(case: Case, provider: str) -> torch.cuda.CUDAGraph:
    """CALLS_A_GRAPH calls captured. A backward runs on its forward's stream, so all of it is on the one captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call = prepare(provider, case, "cuda")
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(CALLS_A_GRAPH):
            call()
    return graph


def judge(result: dict) -> dict[str, tuple[float, float, bool]]:
    """{figure: (value, target, met)} of a result with overhead: microseconds at most, times eager's speed at least."""
    found = result["overhead"]
    figures = {}
    for kind in ("python", "graph"):
        if kind in found:
            own, target = found[kind]["fastflow"], TARGETS[kind]
            figures[f"{kind} us"] = own * 1e6, target * 1e6, own <= target
    ratio = found["python"]["eager"] / found["python"]["fastflow"]
    return figures | {"python x eager": (ratio, EAGER_TARGET, ratio >= EAGER_TARGET)}
