"""`fastflow doctor`: what is installed, which backends serve here, and what to do about those that do not."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

import fastflow
from fastflow import _backend, _library, _proof


def doctor() -> str:
    """The report as text: versions, the native library, one line a backend, and the remedies."""
    rows = [*_versions(), *_native()]
    states = fastflow.backends()
    forced = _backend.forced()
    lines = [f"{name:<16} {value}" for name, value in rows]
    lines += ["", f"{'backend':<16} {'state':<12} reason"]
    lines += [f"{name:<16} {state.status:<12} {state.reason}" for name, state in states.items()]
    lines += ["", f"Forced: {forced}" if forced else "The choice is automatic: the fastest backend that is proved."]
    remedies = [f"{name}: {state.remedy}" for name, state in states.items() if state.remedy]
    return "\n".join(lines + (["", "What to do", *remedies] if remedies else []))


def _versions() -> list[tuple[str, str]]:
    rows = [("fastflow", fastflow.__version__), ("python", platform.python_version())]
    rows += [("torch", torch.__version__), *((name, _installed(name)) for name in ("triton", "numpy"))]
    cuda = torch.version.cuda or "none, torch is a CPU build"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return [*rows, ("cuda of torch", cuda), ("device", device), ("cpu", f"{_cpu_name()}, {os.cpu_count()} cores"),
            ("threads", str(torch.get_num_threads())), ("nvcc", _nvcc())]


def _native() -> list[tuple[str, str]]:
    info = _library.build_info()
    if not info:
        return [("native library", _library.MISSING)]
    sanitizers = f", sanitizers {info['sanitizers']}" if info["sanitizers"] else ""
    rows = [("native library", f"{info['compiler']}{sanitizers}"),
            ("instruction set", _library.instruction_set() or "none"),
            ("cuda kernels", f"nvcc {info['cuda']}, {info['cuda_architectures']}" if info["cuda"] else "not built")]
    rows += [(f"{name} proof", "a record of these sources" if _proof.proved(name) else "no record of these sources")
             for name in ("triton", "cuda")]
    changed = _proof.changed_since_build()
    return [*rows, ("out of date", f"{', '.join(changed)}; {_library.BUILD_COMMAND}")] if changed else rows


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _nvcc() -> str:
    path = shutil.which("nvcc")
    if path is None:
        return "not on PATH"
    output = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    return next((line.strip() for line in output.splitlines() if "release" in line), path)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
