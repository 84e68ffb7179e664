"""The build of a checkout's native library as part of a record, which is of the sources that lie there."""

import shutil
import subprocess
import sys
import time

from fastflow import _library, _proof
from fastflow.bench import record
from fastflow.bench.parts import Deadline


def due(device: str) -> str:
    """Why the native library has to be built first; empty if it has not."""
    if not (record.ROOT / "CMakeLists.txt").is_file():
        return ""
    changed = _proof.changed_since_build()
    if changed:
        return f"{', '.join(changed[:3])}{' and others' if len(changed) > 3 else ''} changed since it was built"
    if device == "cuda" and not _library.build_info()["cuda"] and shutil.which("nvcc"):
        return "it has no CUDA kernels, and nvcc is here"
    return ""


def build(device: str, deadline: Deadline) -> dict:
    """{built, reason, seconds}: builds the library if that is due. The process that asked still has the old one.

    Raises ValueError with the end of what the compiler said, TimeoutError at the deadline.
    """
    reason, start = due(device), time.monotonic()
    if reason:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        try:
            done = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True, timeout=deadline.left)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        if done.returncode:
            raise ValueError(f"the native library could not be built: {(done.stdout + done.stderr)[-3000:]}")
    return {"built": bool(reason), "reason": reason, "seconds": round(time.monotonic() - start, 1)}
