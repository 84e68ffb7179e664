"""How much memory a call needs beyond its results, whoever allocates it: PyTorch, or a kernel's own std::vector.

The profiler sees tensors only, so this looks from outside: at the pages that the process has, before and after.
"""

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from fastflow.bench import malloc


def in_fresh_process(function: Callable[..., int], *arguments) -> int:
    """What the function, of a module's top level, returns in a process of its own, started with this environment."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def scratch_bytes(call: Callable[[], object], warm_up: Callable[[], object]) -> int:
    """The growth of resident memory over the first `call`, at its highest, less the tensors that it returns.

    `warm_up` does the same on a small input, so that code, threads and their stacks are there; what it frees goes back
    to the system. Seen: every page that is written, of tensors, malloc in any thread, thread-local buffers and stacks
    beyond the warm-up's. Not seen: memory that is reserved and never written, and a few kilobytes of reused blocks.
    Pages round it up, by some 100 KB with code that only the large call runs: an upper bound. Needs Linux, a fresh
    process (`in_fresh_process`) and `malloc.tuned`, where freed memory stays; raises ValueError without that.
    """
    if not malloc.tuned():
        raise ValueError("malloc is not tuned, expected `malloc.ensure_tuned` first: freed memory has to stay resident")
    torch.ones(2**20).exp_()  # starts all threads
    for _ in range(2):
        warm_up()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    result = call()
    grown = _status("VmHWM") - before
    written = sum(leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
    return max(0, grown - written)


def _status(field: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
