"""What defining an op takes, once for all ops: schema, fallback, fake, CUDA key, who serves a call, its precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from fastflow import _backend


class Op:
    """One op of the library: its dispatcher entry and the choice of the backend that serves a call.

    `reference` is plain PyTorch, differentiable, and defines the op. `fallback` is what the dispatcher calls where no
    kernel is registered: the reference with the outputs' layout that `fake` promises. The native library registers
    itself for CPU; `on_cuda` names the backend with a kernel for CUDA, "triton" or "cuda" (C++).
    """

    def __init__(self, name: str, schema: str, *, reference: Callable, fallback: Callable, fake: Callable,
                 on_cuda: str | None = None) -> None:
        qualified = f"fastflow::{name}"
        self.name, self.reference, self.fallback, self.on_cuda = name, reference, fallback, on_cuda
        torch.library.define(qualified, schema)
        torch.library.impl(qualified, "CompositeExplicitAutograd", fallback)
        torch.library.register_fake(qualified, fake)
        if on_cuda is not None:
            torch.library.impl(qualified, "CUDA", self._launch_or_fall_back(fallback))
        if on_cuda == "cuda":  # the native library's kernel, apart from the CUDA key, which weighs whether to call it
            torch.library.define(f"fastflow_cuda::{name}", schema)
            torch.library.register_fake(f"fastflow_cuda::{name}", fake)
        self.dispatch = getattr(torch.ops.fastflow, name).default

    def _launch_or_fall_back(self, fallback: Callable) -> Callable:
        def cuda(*args):
            if _backend.kernel_serves(self.on_cuda):
                return _backend.launcher(self.name, self.on_cuda)(*args)
            return fallback(*args)

        return cuda

    def kernel(self, backend: str | None, device_type: str) -> Callable:
        """What to call on `device_type`: the dispatcher by itself, or exactly the backend that the user asked for.

        Raises RuntimeError when that backend cannot serve this op here.
        """
        if backend is None:
            return self.dispatch
        if backend == "reference":
            return self.reference
        _backend.require(self.name, backend, device_type)
        return self.dispatch if backend == "cpu" else _backend.launcher(self.name, backend)


def under_transform() -> bool:
    """Whether a `torch.func` transform or forward-mode AD is active: then the differentiable reference serves."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def by_reference(*grads: Tensor | None) -> bool:
    """Whether a backward that is given these has to be the differentiable reference: its gradients are differentiated
    themselves (create_graph=True), or it is called for a batch of them at once (is_grads_batched=True, vmap)."""
    if torch.compiler.is_compiling():
        return under_transform()
    return (torch.is_grad_enabled() or under_transform()
            or any(each is not None and torch._C._functorch.is_legacy_batchedtensor(each) for each in grads))


def without_autocast(x: Tensor) -> AbstractContextManager:
    """In it, products are taken in the dtypes of their factors, whatever autocast asks for on x's device."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
