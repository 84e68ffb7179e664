"""Tests skip for want of a tool, except where FASTFLOW_REQUIRE names it: there its absence is a failure."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

_PRESENT = {
    "triton": lambda: importlib.util.find_spec("triton") is not None,
    "nvcc": lambda: shutil.which("nvcc") is not None,
    "compiler": lambda: shutil.which("g++") is not None,
    "peers": lambda: all(importlib.util.find_spec(each) for each in ("nflows", "normflows", "FrEIA", "zuko")),
    "data": lambda: Path(os.environ.get("FASTFLOW_DATA", "/nonexistent")).is_dir(),
}

SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
without_asan = pytest.mark.skipif(SANITIZED, reason="under ASan a C++ exception ends the process")


def require(name: str) -> None:
    """Skips the calling test when `name`, a key of `_PRESENT`, is absent; fails it if FASTFLOW_REQUIRE names it."""
    if _PRESENT[name]():
        return
    message = f"{name} is not available here"
    if name in os.environ.get("FASTFLOW_REQUIRE", "").split(","):
        pytest.fail(f"{message}, but FASTFLOW_REQUIRE names it")
    pytest.skip(message)
