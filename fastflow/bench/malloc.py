"""Large tensors on a CPU are timed with an allocator that keeps its pages, or page faults decide the comparison.

By default glibc returns every block above 32 MB to the system, and the next call faults all its pages in again. Eager
PyTorch, which allocates most, loses most by that: a ratio measured so would flatter fused code.
"""

import os
import platform
import sys
from typing import NoReturn

_TUNABLES = {"glibc.malloc.mmap_threshold": 4294967296, "glibc.malloc.trim_threshold": 17179869184}


def tuned() -> bool:
    """Whether this process runs with both thresholds raised."""
    return all(name in os.environ.get("GLIBC_TUNABLES", "") for name in _TUNABLES)


def ensure_tuned() -> None:
    """Starts this process afresh with both thresholds raised, unless it has them or the C library is not glibc."""
    if tuned() or platform.libc_ver()[0] != "glibc":
        return
    settings = [setting for setting in os.environ.get("GLIBC_TUNABLES", "").split(":") if setting]
    settings += [f"{name}={value}" for name, value in _TUNABLES.items()]
    print("bench: starting again with tuned malloc (GLIBC_TUNABLES); --default-malloc leaves it alone", file=sys.stderr,
          flush=True)
    # The profiler, which counts memory, announces itself on stderr unless told not to before torch is imported.
    environment = os.environ | {"GLIBC_TUNABLES": ":".join(settings), "KINETO_LOG_LEVEL": "99"}
    start_again(environment)


def start_again(environment: dict[str, str], *arguments: str) -> NoReturn:
    """This command again in a fresh process, with more arguments after its own."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:], *arguments], environment)


def description() -> str:
    """How a record names the allocator."""
    return "tuned: mmap and trim thresholds raised" if tuned() else "default"
