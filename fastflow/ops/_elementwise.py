"""What element-wise bijections without parameters share: their two ops, their gradient, who serves a call.

Such a bijection is given by reference(x, log_det, *settings) -> (z, log_det) and backward_reference(grad_z,
grad_log_det, x, *settings) -> grad_x, x being the input also where the settings say inverse.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import compute_dtype
from fastflow.ops._define import Op, under_transform


def define(name: str, settings: str, reference: Callable, backward_reference: Callable) -> tuple[Op, Op]:
    """The ops `name` and `name`_backward; `settings` are those of the bijection as a schema writes them."""

    def fallback(x: Tensor, *rest) -> tuple[Tensor, Tensor]:
        z, log_det = reference(x, *rest)
        return torch.empty_like(x).copy_(z), log_det

    def backward_fallback(grad_z: Tensor, grad_log_det: Tensor | None, x: Tensor, *rest) -> Tensor:
        return torch.empty_like(x).copy_(backward_reference(grad_z, grad_log_det, x, *rest))

    def fake(x, log_det, *rest):
        return torch.empty_like(x), x.new_empty(x.shape[0], dtype=compute_dtype(x))

    def backward_fake(grad_z, grad_log_det, x, *rest):
        return torch.empty_like(x)

    return (
        Op(name, f"(Tensor x, Tensor? log_det, {settings}) -> (Tensor, Tensor)",
           reference=reference, fallback=fallback, fake=fake, on_cuda="triton"),
        Op(f"{name}_backward", f"(Tensor grad_z, Tensor? grad_log_det, Tensor x, {settings}) -> Tensor",
           reference=backward_reference, fallback=backward_fallback, fake=backward_fake, on_cuda="triton"),
    )


class _Elementwise(torch.autograd.Function):
    """Saves the input: exact in every storage dtype."""

    @staticmethod
    def forward(ctx, x, log_det, forward, backward, backend, *settings):
        ctx.op, ctx.backend, ctx.settings = backward, backend, settings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return forward.kernel(backend, x.device.type)(x, log_det, *settings)

    @staticmethod
    def backward(ctx, grad_z, grad_log_det):
        (x,) = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_z = torch.zeros_like(x) if grad_z is None else grad_z
            # Under create_graph=True the gradient itself is differentiated: only the reference can be.
            differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
            kernel = ctx.op.reference if differentiable else ctx.op.kernel(ctx.backend, x.device.type)
            grad_x = kernel(grad_z, grad_log_det, x, *ctx.settings)
        grad_log_det = grad_log_det if ctx.needs_input_grad[1] else None
        return grad_x, grad_log_det, *[None] * (3 + len(ctx.settings))


def call(forward: Op, backward: Op, x: Tensor, log_det: Tensor | None, *settings) -> tuple[Tensor, Tensor]:
    """(z, log_det) of checked arguments, differentiable."""
    backend = _backend.forced()
    if backend == "reference" or under_transform():
        return forward.reference(x, log_det, *settings)
    if torch.is_grad_enabled() and (x.requires_grad or (log_det is not None and log_det.requires_grad)):
        return _Elementwise.apply(x, log_det, forward, backward, backend, *settings)
    return forward.kernel(backend, x.device.type)(x, log_det, *settings)
