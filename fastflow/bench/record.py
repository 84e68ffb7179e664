"""Records: what was measured, on what, from which sources, and which tests were green there."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fastflow import __version__, _backend, _proof
from fastflow.bench import malloc

ROOT = Path(__file__).parents[2]
_PACKAGES = ("torch", "triton", "numpy")


def folder(given: Path | None) -> Path:
    """Where records go. Raises ValueError if that is not a folder, as in an installed package without --folder."""
    path = given or ROOT / "benchmarks" / "records"
    if not path.is_dir():
        raise ValueError(f"folder is {path}, expected one that exists; --folder names another")
    return path


def commit(given: str | None) -> str:
    """The commit of these sources, "-dirty" if they differ from it. Raises ValueError if nothing says it."""
    if given:
        return given
    try:
        revision = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "fastflow", "kernels", "csrc")
    except (OSError, subprocess.CalledProcessError):
        raise ValueError("commit is unknown here, expected --commit SHA where there is no .git") from None
    return revision + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write(where: Path, results: list[dict], rates: dict, *, commit: str, machine: dict, parts: dict) -> Path:
    """Adds `machine` (of `describe_device`), versions and sources to what was measured and to the other `parts`.

    Writes <device>-<UTC time>.json into `where`.
    """
    now, device = datetime.now(UTC), machine["type"]
    content = {
        "time": now.isoformat(timespec="seconds"), "commit": commit, "device": machine, "versions": versions(),
        "malloc": malloc.description() if device == "cpu" else None,
        "launch_table": os.environ.get("FASTFLOW_LAUNCH_TABLE"),
        "backends": {name: state.status for name, state in _backend.backends().items()},
        "sources": _proof.sources(),
        **parts,
        "rates": rates, "results": [_with_shares(result, rates[str(result["threads"])]) for result in results],
    }
    path = where / f"{slug(machine)}-{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def slug(machine: dict) -> str:
    """The device's name as files have it."""
    return "".join(c if c.isalnum() else "-" for c in machine["name"]).strip("-").lower()


def _with_shares(result: dict, rates: dict) -> dict:
    """Each provider's minimum bytes and flops a second, as shares of the device's large copy and matrix product."""
    providers = {
        name: provider | {
            "copy_share": result["bytes"] / provider["seconds"] / rates["copy_bytes_per_second"],
            "matrix_share": result["flops"] / provider["seconds"] / rates["matrix_flops_per_second"],
        }
        for name, provider in result["providers"].items()
    }
    return result | {"providers": providers}


def describe_device(device: str) -> dict:
    """Name, and what else decides a time: driver and compute capability, or cores and instruction set.

    Raises ValueError where nvidia-smi does not tell the driver.
    """
    if device == "cuda":
        properties = torch.cuda.get_device_properties()
        return {"type": "cuda", "name": properties.name, "driver": _driver(), "memory_bytes": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}", "l2_bytes": properties.L2_cache_size}
    names = [line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")]
    return {"type": "cpu", "name": names[0] if names else platform.machine(), "driver": None, "cores": len(names),
            "instruction_set": torch.backends.cpu.get_cpu_capability(), "kernel": platform.release()}


def _driver() -> str:
    try:
        return subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                              check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise ValueError(f"nvidia-smi failed ({error}), expected the driver's version; put it on PATH") from None


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def versions() -> dict[str, str | None]:
    """Of fastflow, Python, CUDA as torch was built, and the packages that decide a time."""
    found = {"fastflow": __version__, "python": platform.python_version(), "cuda": torch.version.cuda}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def require_tests() -> None:
    """Raises ValueError in an installed package, which has no tests."""
    if not (ROOT / "tests").is_dir():
        raise ValueError(f"tests are not in {ROOT}, expected a checkout; --no-tests records without them")
