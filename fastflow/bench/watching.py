"""Who serves a call: every op, and a watch over the calls that are made.

Watching: Python reports every function it enters. A call that enters an op's reference was served by the reference,
however it got there; one that enters a Triton launcher, by Triton; one that is handed to the dispatcher, where a native
kernel is registered for the device, and enters neither, by that kernel.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

import torch

import fastflow.ops
from fastflow import _backend
from fastflow.ops._define import Op


@cache
def ops() -> dict[str, Op]:
    """Every op that has a dispatcher entry, by name."""
    modules = [import_module(f"fastflow.ops.{module.name}") for module in iter_modules(fastflow.ops.__path__)]
    return {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Op)}


@contextmanager
def watch(device: str = "cpu") -> Iterator[dict[str, str]]:
    """Yields {op: backend} of the calls made inside the block, complete when the block ends. Needs CPython."""
    references = {op.reference.__code__: name for name, op in ops().items()}
    launchers = _triton_launchers()
    dispatched, served = set(), {}

    def notice(frame, event: str, argument: object) -> None:
        if event != "call":
            return
        if frame.f_code is torch._ops.OpOverload.__call__.__code__:
            overload = frame.f_locals["self"]
            if overload.namespace == "fastflow":
                dispatched.add(overload._opname)
            elif overload.namespace == "fastflow_cuda":
                served[overload._opname] = "cuda"
        elif frame.f_code in references:
            served[references[frame.f_code]] = "reference"
        elif frame.f_code in launchers:
            served[launchers[frame.f_code]] = "triton"

    before = sys.getprofile()
    # The engine would run a CUDA tensor's backward in a thread of its own, out of sight.
    with torch.autograd.set_multithreading_enabled(False):
        sys.setprofile(notice)
        try:
            yield served
        finally:
            sys.setprofile(before)
    for name in dispatched - served.keys():
        if device != "cpu" or not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastflow::{name}", "CPU"):
            raise RuntimeError(f"{name}: the dispatcher took the call, and nothing that is known here ran on {device}")
        served[name] = "cpu"


def _triton_launchers() -> dict:
    if _backend.state("triton").status == "unavailable":
        return {}
    return {_backend.launcher(name, "triton").__code__: name for name, op in ops().items() if op.on_cuda == "triton"}
