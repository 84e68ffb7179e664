"""Conditioners and what they parametrise as one node of the graph, where the conditioners are `Mlp`s.

z has the passive channels of x as they are, so that neither x nor what the conditioners were given is saved, and the
gradient that they send back is added in place. On batches of a thousand rows nodes cost what kernels do
(`benchmarks/drop_in_ceiling.py`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastflow.fusion.layer import is_customised
from fastflow.fusion.mlp import Mlp, fits, layers_of, serves, unwrapped
from fastflow.ops._define import by_reference
from fastflow.ops.affine_coupling import backward_reference as coupling_backward
from fastflow.ops.mlp import backward_reference as network_backward
from fastflow.ops.mlp import reference as network_reference
from fastflow.ops.packing import PACKINGS, unpack
from fastflow.ops.scale_map import ScaleMap, settings_of

mlp_forward, mlp_backward = torch.ops.fastflow.mlp.default, torch.ops.fastflow.mlp_backward.default


class Networks(NamedTuple):
    """Which channels the conditioners are given, and the number of parameters and the slope of each."""

    passive: slice
    each: tuple[tuple[int, float], ...]

    def split(self, parameters: Sequence[Tensor]) -> list[tuple[Sequence[Tensor], float]]:
        """The parameters of each network, and its slope."""
        first, found = 0, []
        for count, slope in self.each:
            found.append((parameters[first : first + count], slope))
            first += count
        return found


def networks_of(conditioners: Sequence[nn.Module], x: Tensor, passive: slice, outputs: int,
                ) -> tuple[Networks, list[Tensor]] | None:
    """What a node needs to call the conditioners by itself; None where they are to be called as modules."""
    if not torch.is_grad_enabled() or x.dim() != 2 or not serves(x):
        return None
    mlps = [unwrapped(each) for each in conditioners]
    if not all(isinstance(each, Mlp) for each in mlps):
        return None
    width, parameters, networks = len(range(x.shape[1])[passive]), [], []
    for each in mlps:
        found = None if is_customised(each) else layers_of(each)
        if found is None or not fits(x, width, found[0]) or found[0][-1].shape[0] != outputs:
            return None
        parameters += found[0]
        networks.append((len(found[0]), found[1]))
    return Networks(passive, tuple(networks)), parameters


def run(networks: Networks, x: Tensor, parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What each network makes of the passive channels of x, and its activations."""
    given = x[:, networks.passive]
    results = [mlp_forward(given, own, slope, True) for own, slope in networks.split(parameters)]
    return [made for made, _ in results], [hidden for _, hidden in results]


def remade(networks: Networks, z: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """As `run`, differentiable."""
    given = z[:, networks.passive]
    return [network_reference(given, own, slope) for own, slope in networks.split(parameters)]


def run_back(networks: Networks, z: Tensor, hidden: Sequence[Tensor], parameters: Sequence[Tensor],
             grads: Sequence[Tensor], grad_x: Tensor, of_x: bool, differentiable: bool) -> tuple[Tensor, list[Tensor]]:
    """(grad_x, gradients of the parameters) from those of what the networks made; grad_x may be written to, and is not
    wanted unless `of_x`."""
    passive, found = networks.passive, []
    given = z[:, passive]
    for n, (own, slope) in enumerate(networks.split(parameters)):
        if differentiable:
            grad_given, of_own = network_backward(grads[n], given, own, slope)
            total = grad_x[:, passive] + grad_given
            grad_x = grad_x.slice_scatter(total, 1, passive.start, passive.stop, passive.step or 1)
        else:
            grad_given, of_own = mlp_backward(grads[n], given, hidden[n], own[::2], slope, of_x)
            if of_x:
                grad_x[:, passive] += grad_given
        found += of_own
    return grad_x, found


class _ConditionedCoupling(torch.autograd.Function):
    """`packing` is None where one network makes the scale and one the shift."""

    @staticmethod
    def forward(ctx, x, log_det, networks, packing, settings, *parameters):
        made, hidden = run(networks, x, parameters)
        scale, shift = made if packing is None else unpack(made[0], packing)
        z, total = torch.ops.fastflow.affine_coupling.default(x, scale, shift, None, None, log_det, *settings)
        ctx.networks, ctx.packing, ctx.settings = networks, packing, settings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, *made, *hidden, *parameters)
        return z, total

    @staticmethod
    def backward(ctx, grad_z, grad_log_det):
        networks, packing, count = ctx.networks, ctx.packing, len(ctx.networks.each)
        z, *rest = ctx.saved_tensors
        made, hidden, parameters = rest[:count], rest[count : 2 * count], rest[2 * count :]
        differentiable, of_x = by_reference(grad_z, grad_log_det), ctx.needs_input_grad[0]
        if differentiable:
            made = remade(networks, z, parameters)
        saved = z
        if grad_z is None:  # then the output does not count, not even where it overflowed: 0 times infinity is NaN
            grad_z = saved = torch.zeros_like(z)
        scale, shift = made if packing is None else unpack(made[0], packing)
        kernel = coupling_backward if differentiable else torch.ops.fastflow.affine_coupling_backward.default
        grad_x, grad_made, _ = kernel(grad_z, grad_log_det, saved, scale, shift, None, None, *ctx.settings, False,
                                      packing or 0)
        grads = unpack(grad_made, 0) if packing is None else (grad_made,)
        grad_x, found = run_back(networks, z, hidden, parameters, grads, grad_x, of_x, differentiable)
        return grad_x if of_x else None, grad_log_det if ctx.needs_input_grad[1] else None, None, None, None, *found


def conditioned_coupling(conditioners: Sequence[nn.Module], x: Tensor, passive: slice, active: slice, *,
                         packing: str | None, scale_map: ScaleMap, log_det: Tensor | None = None,
                         inverse: bool = False) -> tuple[Tensor, Tensor] | None:
    """`affine_coupling_packed` of x and what the conditioner makes of its passive channels; None where it cannot be one
    node.

    conditioners  one, or with packing None two, of the scale and of the shift

    All else is as there.
    """
    channels = range(x.shape[1])[active]
    found = networks_of(conditioners, x, passive, len(channels) * (1 if packing is None else 2))
    if found is None:
        return None
    networks, parameters = found
    settings = channels.start, channels.step, *settings_of(scale_map), inverse
    return _ConditionedCoupling.apply(x, log_det, networks, None if packing is None else PACKINGS.index(packing),
                                      settings, *parameters)
