"""What defining an op takes, once for all ops: schema, fallback, fake, the CUDA key, and who serves a call."""

from collections.abc import Callable

import torch

from fastflow import _backend


class Op:
    """One op of the library: its dispatcher entry and the choice of the backend that serves a call.

    `reference` is plain PyTorch, differentiable, and defines the op. `fallback` is what the dispatcher calls where no
    kernel is registered: the reference with the outputs' layout that `fake` promises. The native library registers
    itself for CPU; `triton` names the launcher in `fastflow.kernels` that serves CUDA.
    """

    def __init__(self, name: str, schema: str, *, reference: Callable, fallback: Callable, fake: Callable,
                 triton: str | None = None) -> None:
        qualified = f"fastflow::{name}"
        self.name, self.reference, self.triton = name, reference, triton
        torch.library.define(qualified, schema)
        torch.library.impl(qualified, "CompositeExplicitAutograd", fallback)
        torch.library.register_fake(qualified, fake)
        if triton is not None:
            torch.library.impl(qualified, "CUDA", self._launch_or_fall_back(fallback))
        self.dispatch = getattr(torch.ops.fastflow, name).default

    def _launch_or_fall_back(self, fallback: Callable) -> Callable:
        def cuda(*args):
            if _backend.triton_serves(self.name):
                return _backend.triton_launcher(self.triton)(*args)
            return fallback(*args)

        return cuda

    def kernel(self, backend: str | None, device_type: str) -> Callable:
        """What to call on `device_type`: the dispatcher by itself, or exactly the backend that the user asked for.

        Raises RuntimeError when that backend cannot serve this op here.
        """
        if backend is None or backend == "auto":
            return self.dispatch
        if backend == "reference":
            return self.reference
        if backend == "triton" and self.triton is not None:
            _backend.require(self.name, backend, device_type)
            return _backend.triton_launcher(self.triton)
        _backend.require(self.name, backend, device_type)
        return self.dispatch


def under_transform() -> bool:
    """Whether a `torch.func` transform or forward-mode AD is active: then the differentiable reference serves."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0
