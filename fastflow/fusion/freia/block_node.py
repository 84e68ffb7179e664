"""FrEIA: AllInOneBlock's coupling, scaling and permutation, and a subnet that is an `Mlp`, as one node of the graph.

Several nodes compute the same; but at 1024 rows of 64 features nodes cost what their kernels do
(`benchmarks/drop_in_ceiling.py`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.fusion.conditioned import Networks, remade, run, run_back
from fastflow.fusion.freia.channels import permuted
from fastflow.ops._define import by_reference, under_transform
from fastflow.ops.act_norm import backward_reference as scaling_backward
from fastflow.ops.affine_coupling import backward_reference as coupling_backward
from fastflow.ops.packing import PACKINGS, unpack

PACKING = PACKINGS.index("scale_shift")


def is_one_node(x: Tensor) -> bool:
    """Whether gradients are wanted and the kernels are the dispatcher's; 16-bit storage saves other tensors."""
    return (torch.is_grad_enabled() and x.dtype in (torch.float32, torch.float64)
            and _backend.forced() in (None, "cpu") and not under_transform())


class Scaling(NamedTuple):
    """What follows the coupling: z = exp(log_scale) y + offset, and its channels in another order, if one is given."""

    offset: Tensor
    log_scale: Tensor
    order: Tensor | None
    back: Tensor | None  # the inverse permutation


def coupled_and_scaled(x: Tensor, made: Tensor, scaling: Scaling, settings: tuple) -> tuple[Tensor, Tensor]:
    """(z, log_det): `affine_coupling_packed` with parameters made = [s | t], and `scaling`.

    Arguments are trusted; `settings` are those of the coupling's schema.
    """
    z, log_det, _ = _CoupledAndScaled.apply(x, made, *scaling, settings, None, None)
    return z, log_det


def conditioned_and_scaled(x: Tensor, networks: Networks, parameters: list[Tensor], damping: float | Tensor,
                           scaling: Scaling, settings: tuple) -> tuple[Tensor, Tensor]:
    """`coupled_and_scaled` with damping times what the network of these parameters makes."""
    z, log_det, _ = _CoupledAndScaled.apply(x, None, *scaling, settings, networks, damping, *parameters)
    return z, log_det


def _damped(parameters: Sequence[Tensor], damping: float | Tensor) -> list[Tensor]:
    """Those of a network that makes damping times as much, or their gradients."""
    *first, weight, bias = parameters
    return [*first, weight * (damping.unsqueeze(1) if isinstance(damping, Tensor) else damping), bias * damping]


class _CoupledAndScaled(torch.autograd.Function):
    """What lies between coupling and scaling is a result too, so that it can be saved and differentiated twice."""

    @staticmethod
    def forward(ctx, x, made, offset, log_scale, order, back, settings, networks, damping, *parameters):
        hidden = ()
        if networks is not None:
            (made,), hidden = run(networks, x, _damped(parameters, damping))
        y, log_det = torch.ops.fastflow.affine_coupling.default(x, *unpack(made, PACKING), None, None, None, *settings)
        z, log_det = torch.ops.fastflow.act_norm.default(y, offset, log_scale, log_det, False, False)
        ctx.settings, ctx.networks, ctx.damping = settings, networks, damping
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, made, offset, log_scale, order, back, *hidden, *parameters)
        return z if order is None else permuted(z, order, back), log_det, y

    @staticmethod
    def backward(ctx, grad_z, grad_log_det, grad_y):
        y, made, offset, log_scale, order, back, *rest = ctx.saved_tensors
        networks, hidden, parameters = ctx.networks, rest[:1], rest[1:]
        differentiable, of_x = by_reference(grad_z, grad_log_det, grad_y), ctx.needs_input_grad[0]
        if differentiable and networks is not None:
            made = remade(networks, y, parameters)[0] * ctx.damping
        scaling = scaling_backward if differentiable else torch.ops.fastflow.act_norm_backward.default
        coupling = coupling_backward if differentiable else torch.ops.fastflow.affine_coupling_backward.default
        passive_of = y
        if grad_z is None:
            grad_z = torch.zeros_like(y)
            y = grad_z if grad_y is None else y  # then it may have overflowed, and 0 times infinity is NaN
        elif order is not None:
            grad_z = permuted(grad_z, back, order)
        grad, grad_offset, grad_log_scale = scaling(grad_z, grad_log_det, y, offset, log_scale, False, False, True)
        grad = grad if grad_y is None else grad + grad_y
        grad_x, grad_made, _ = coupling(grad, grad_log_det, y, *unpack(made, PACKING), None, None, *ctx.settings, False,
                                        PACKING)
        found = ()
        if networks is not None:
            damped = parameters if differentiable else _damped(parameters, ctx.damping)
            grad_made = grad_made * ctx.damping if differentiable else grad_made
            grad_x, found = run_back(networks, passive_of, hidden, damped, (grad_made,), grad_x, of_x, differentiable)
            grad_made, found = None, found if differentiable else _damped(found, ctx.damping)
        return grad_x if of_x else None, grad_made, grad_offset, grad_log_scale, None, None, None, None, None, *found
