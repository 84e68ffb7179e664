"""Which backend serves a call: what is available here, what is proved, and what the user asked for."""

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

from fastflow import _library, _proof

NAMES = ("auto", "reference", "cpu", "triton", "cuda")


class Unserved(RuntimeError):
    """A backend or instruction set that the user asked for cannot serve."""


@dataclass(frozen=True)
class State:
    """`status` is "available", "unproved" (right only by the tests that need no GPU) or "unavailable"."""

    status: str
    reason: str
    remedy: str = ""


def _checked(name: str, source: str) -> str | None:
    if name not in NAMES:
        raise ValueError(f"{source}: backend is {name!r}, expected one of {', '.join(NAMES)}")
    return None if name == "auto" else name


_asked = os.environ.get("FASTFLOW_BACKEND", "auto")
_forced = None if _asked == "auto" else _asked  # an unknown name raises where it is used: an import should not fail
_library.load()


def _constant_to_the_compiler(function: Callable) -> Callable:
    """torch.compiler.assume_constant_result without its import of Dynamo, which takes longer than that of torch."""
    function._dynamo_marked_constant = True
    return function


def forced() -> str | None:
    """The backend that the user asked for; None when the choice is automatic. Raises ValueError for an unknown one."""
    return None if _forced is None else _checked(_forced, "FASTFLOW_BACKEND")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Computes every op inside the block by one backend: "reference", "cpu", "triton", "cuda"; "auto" undoes that.

    Holds for the process, all threads. The environment variable FASTFLOW_BACKEND, read once at import, sets the same.
    A call that the backend cannot serve raises RuntimeError. An unknown name raises ValueError.
    """
    global _forced
    before, _forced = _forced, _checked(name, "backend")
    try:
        yield
    finally:
        _forced = before


def backends() -> dict[str, State]:
    """The state of each backend here, with the reason, and with what to do about one that is not available."""
    return {name: state(name) for name in NAMES[1:]}


@cache
def state(name: str) -> State:
    """The state of one backend; looked up once a process."""
    return {"reference": _reference, "cpu": _cpu, "triton": _triton, "cuda": _cuda}[name]()


def _reference() -> State:
    return State("available", "plain PyTorch, any device")


def _cpu() -> State:
    if _library.load() is None:
        return State("unavailable", _library.MISSING, _library.REMEDY)
    level = _library.instruction_set()
    if not level:
        return State("unavailable", f"FASTFLOW_CPU_ISA is {os.environ.get('FASTFLOW_CPU_ISA')!r}",
                     "set it to baseline, avx2 or avx512, at most what this CPU has, or unset it")
    return State("available", f"C++, instruction set {level}")


def _triton() -> State:
    if find_spec("triton") is None:
        return State("unavailable", "triton is not installed", "pip install triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return State("available", "Triton's interpreter, on CPU tensors, for tests only")
    return _without_device() or _by_record("triton")


def _cuda() -> State:
    if _library.load() is None:
        return State("unavailable", _library.MISSING, _library.REMEDY)
    if not _library.build_info()["cuda"]:
        return State("unavailable", "the native library was built without nvcc",
                     f"put nvcc on PATH, then: {_library.BUILD_COMMAND}")
    return _without_device() or _by_record("cuda")


def _without_device() -> State | None:
    if torch.version.cuda is None:
        return State("unavailable", f"torch {torch.__version__} is a build without CUDA",
                     "install a CUDA build of torch")
    if not torch.cuda.is_available():
        return State("unavailable", "torch sees no CUDA device", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return State("unavailable", f"compute capability {major}.{minor}", "use a device of capability 8.0 or later")
    return None


def _by_record(name: str) -> State:
    device = torch.cuda.get_device_name()
    if _proof.proved(name):
        return State("available", f"{device}, proved by a record of these sources")
    return State("unproved", f"no record shows the GPU tests green on these sources; on {device} the reference serves",
                 f'force it with fastflow.backend("{name}"), or prove it: fastflow bench record')


def kernel_serves(name: str) -> bool:
    """Whether the automatic choice on CUDA takes the kernels of "triton" or "cuda"; warns once if they are unproved."""
    current = state(name)
    if current.status == "unproved":
        _warn_unproved(name)
    return current.status == "available"


@cache
def _warn_unproved(name: str) -> None:
    current = state(name)
    warnings.warn(f"fastflow: the {name} kernels are unproved: {current.reason}. To change that, {current.remedy}",
                  stacklevel=2)


@_constant_to_the_compiler
def launcher(op: str, name: str) -> Callable:
    """What runs the kernel of `op` that belongs to "triton" or "cuda". Triton is imported here, on the first use."""
    if name == "triton":
        return getattr(importlib.import_module("fastflow.kernels"), f"{op}_cuda")
    return getattr(torch.ops.fastflow_cuda, op).default


def require(op: str, name: str, device_type: str) -> None:
    """Raises Unserved unless the backend `name`, which the user forced, serves `op` on this type of device."""
    problem = _problem(op, name, device_type)
    if problem is not None:
        raise Unserved(f"{op}: backend {name!r} was asked for and {problem}")


def require_instruction_set() -> None:
    """Raises Unserved if FASTFLOW_CPU_ISA asks for what this CPU has not and nothing but its kernels may serve."""
    current = state("cpu")
    if forced() is None and _library.load() is not None and current.status == "unavailable":
        raise Unserved(f"{current.reason}: {current.remedy}")


@_constant_to_the_compiler
def _problem(op: str, name: str, device_type: str) -> str | None:
    current = state(name)
    if current.status == "unavailable":
        return f"is unavailable: {current.reason}; {current.remedy}"
    expected = "cpu" if name == "cpu" or (name == "triton" and os.environ.get("TRITON_INTERPRET") == "1") else "cuda"
    if device_type != expected:
        return f"x is on {device_type}, expected {expected}"
    return None if _has_kernel(op, name) else 'has no kernel of this op, use backend("auto")'


@cache
def _has_kernel(op: str, name: str) -> bool:
    if name == "triton":
        return hasattr(importlib.import_module("fastflow.kernels"), f"{op}_cuda")
    namespace, key = ("fastflow_cuda", "CUDA") if name == "cuda" else ("fastflow", "CPU")
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    return hasattr(getattr(torch.ops, namespace), op) and registered(f"{namespace}::{op}", key)
