"""FrEIA: AllInOneBlock's coupling, scaling and permutation as one node of the graph.

Three nodes compute the same; but at 1024 rows of 64 features the Python of a node takes as long as its kernels.
"""

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.fusion.freia.channels import permuted
from fastflow.ops._define import under_transform
from fastflow.ops.act_norm import backward_reference as scaling_backward
from fastflow.ops.affine_coupling import backward_reference as coupling_backward
from fastflow.ops.packing import PACKINGS, unpack

PACKING = PACKINGS.index("scale_shift")


def serves(x: Tensor) -> bool:
    """Whether gradients are wanted and the kernels are the dispatcher's; 16-bit storage saves other tensors."""
    return (torch.is_grad_enabled() and x.dtype in (torch.float32, torch.float64)
            and _backend.forced() is None and not under_transform())


def coupled_and_scaled(x: Tensor, parameters: Tensor, offset: Tensor, log_scale: Tensor, order: Tensor | None,
                       back: Tensor | None, settings: tuple) -> tuple[Tensor, Tensor]:
    """(z, log_det): `affine_coupling_packed` with parameters [s | t], `elementwise_affine`, and the channels in another
    order, if one is given. Arguments are trusted; `settings` are those of the coupling's schema."""
    z, log_det, _ = _CoupledAndScaled.apply(x, parameters, offset, log_scale, order, back, settings)
    return z, log_det


class _CoupledAndScaled(torch.autograd.Function):
    """What lies between coupling and scaling is a result too, so that it can be saved and differentiated twice."""

    @staticmethod
    def forward(ctx, x, parameters, offset, log_scale, order, back, settings):
        y, log_det = torch.ops.fastflow.affine_coupling.default(
            x, *unpack(parameters, PACKING), None, None, None, *settings)
        z, log_det = torch.ops.fastflow.act_norm.default(y, offset, log_scale, log_det, False, False)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, parameters, offset, log_scale, order, back)
        return z if order is None else permuted(z, order, back), log_det, y

    @staticmethod
    def backward(ctx, grad_z, grad_log_det, grad_y):
        y, parameters, offset, log_scale, order, back = ctx.saved_tensors
        # Under create_graph=True the gradients themselves are differentiated: only the references can be.
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        scaling = scaling_backward if differentiable else torch.ops.fastflow.act_norm_backward.default
        coupling = coupling_backward if differentiable else torch.ops.fastflow.affine_coupling_backward.default
        if grad_z is None:
            grad_z = torch.zeros_like(y)
            y = grad_z if grad_y is None else y  # then it may have overflowed, and 0 times infinity is NaN
        elif back is not None:
            grad_z = permuted(grad_z, back, order)
        grad, grad_offset, grad_log_scale = scaling(grad_z, grad_log_det, y, offset, log_scale, False, False, True)
        grad = grad if grad_y is None else grad + grad_y
        grad_x, grad_parameters, _ = coupling(grad, grad_log_det, y, *unpack(parameters, PACKING), None, None,
                                              *ctx.settings, False, PACKING)
        return grad_x, grad_parameters, grad_offset, grad_log_scale, None, None, None
