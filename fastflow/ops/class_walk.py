"""The walk of pairs (row, class) through a conditional flow, segment by segment, and back.

    segment: an affine map of the features, at most two residual couplings of their halves, features that leave

Up to the first coupling nothing depends on the class, and the state has one row a row of z: the first map, and what the
first coupling makes of its passive half by the first linear layer, are computed once for all classes. Each coupling
goes back from its output, by `residual_coupling_backward`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Coupling(NamedTuple):
    """Which half is active, of how many tensors the weights of `residual_coupling` consist, and its settings."""

    first: bool
    weights: int
    settings: tuple[int, float, float, float, bool]


class Segment(NamedTuple):
    """Whether there is a map, where the halves of the couplings meet (0: no couplings), how many features leave."""

    mapped: bool
    boundary: int
    couplings: tuple[Coupling, ...]
    leaving: int


class Plan(NamedTuple):
    """A flow conditioned on K classes, and what is known of the density of its latents.

    layout   its segments, of which the first has couplings
    tensors  in order, for each segment: matrix [D, D], center and shift [D] or None of its map; for each coupling its
             table [K, H] and weights
    scales   [D] of independent normal latents, whose density joins log_det up to its constant; None: z_h is wanted
    own      [] float64, what the log-density of every pair gets besides
    """

    layout: tuple[Segment, ...]
    tensors: list[Tensor | None]
    scales: Tensor | None
    own: Tensor


class Operands(NamedTuple):
    """The tensors of one segment, and the dtype of the products."""

    affine: list[Tensor | None]
    nets: list[tuple[Tensor, list[Tensor]]]
    products: torch.dtype

    def net(self, index: int) -> tuple[Tensor, list[Tensor]]:
        """(table, weights) as `residual_coupling` takes them: matrices cast when they are needed, not all at once."""
        table, weights = self.nets[index]
        return table, [each.to(self.products if each.dim() == 2 else each.dtype).contiguous() for each in weights]


def operands_of(layout: tuple[Segment, ...], tensors: tuple[Tensor | None, ...], products: torch.dtype,
                ) -> list[Operands]:
    given, found = iter(tensors), []
    for segment in layout:
        affine = [next(given) for _ in range(3 if segment.mapped else 0)]
        nets = [(next(given), [next(given) for _ in range(each.weights)]) for each in segment.couplings]
        found.append(Operands(affine, nets, products))
    return found


def _parts(boundary: int) -> list[slice]:
    return [slice(0, boundary), slice(boundary, None)] if boundary else [slice(None)]


def _halves(state: Tensor, affine: list[Tensor | None], boundary: int) -> list[Tensor]:
    """The mapped state, in two tensors where couplings follow."""
    if not affine:
        return [state[:, part].contiguous() for part in _parts(boundary)]
    matrix, center, shift = affine
    v = state if center is None else state - center
    return [F.linear(v, matrix[part], None if shift is None else shift[part]) for part in _parts(boundary)]


def _latents(layout: tuple[Segment, ...], states: list[Tensor]) -> Tensor:
    """z_h: what left, in that order, then the rest."""
    left = [state[:, : segment.leaving] for state, segment in zip(states[:-1], layout[:-1], strict=True)]
    return torch.cat([*left, states[-1]], 1)


def through(z: Tensor, layout: tuple[Segment, ...], operands: list[Operands], scales: Tensor | None,
            pairs: Tensor | None, kernel: Callable, keep: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(log_det, z_h, the output of each segment or, unless they are kept, none) of the given pairs, or of all."""
    state, log_det, states, left, end = z, None, [], [], 0
    for index, (segment, given) in enumerate(zip(layout, operands, strict=True)):
        halves, shared = _halves(state, given.affine, segment.boundary), [index == 0] * 2
        del state  # or it would take its memory until the couplings are through
        for position, coupling in enumerate(segment.couplings):
            active, passive = (0, 1) if coupling.first else (1, 0)
            halves[active], log_det = kernel(halves[passive], halves[active], log_det, *given.net(position), pairs,
                                             shared[passive], shared[active], *coupling.settings)
            shared[active] = False
        if index == 0 and any(shared):
            classes = classes_of(operands)
            halves = [half if not still else half.repeat_interleave(classes, 0) if pairs is None else
                      half[pairs // classes] for half, still in zip(halves, shared, strict=True)]
        state = torch.cat(halves, 1)
        if keep:
            states.append(state)
        leaving = segment.leaving if index < len(layout) - 1 else state.shape[1]
        if scales is None:
            left.append(state[:, :leaving].clone())
        elif leaving:
            log_det = log_det - 0.5 * (state[:, :leaving] / scales[end : end + leaving]).square().sum(1)
        state, end = state[:, leaving:], end + leaving
    return log_det, torch.cat(left, 1) if scales is None else z.new_empty(0), states


def back(z: Tensor, layout: tuple[Segment, ...], operands: list[Operands], scales: Tensor | None,
         pairs: Tensor | None, states: list[Tensor], kernel: Callable, grad_log_det: Tensor, grad_z_h: Tensor,
         ) -> list[Tensor | None]:
    """The gradients of z [B, D], scales and the tensors of the plan."""
    grad_scales, grads = None, []
    if scales is not None:
        whitened = _latents(layout, states) / scales
        weighted = grad_log_det[:, None] * whitened / scales
        grad_scales, grad_z_h = (weighted * whitened).sum(0), -weighted
    end = grad_z_h.shape[1] - states[-1].shape[1]
    grad = grad_z_h[:, end:]
    for index in range(len(layout) - 1, -1, -1):
        segment, affine = layout[index], operands[index].affine
        if index < len(layout) - 1:
            grad, end = torch.cat([grad_z_h[:, end - segment.leaving : end], grad], 1), end - segment.leaving
        before = z if index == 0 else states[index - 1][:, layout[index - 1].leaving :]
        halves, grad_halves = ([each[:, part].contiguous() for part in _parts(segment.boundary)]
                               for each in (states[index], grad))
        entering = _halves(z, affine, segment.boundary) if index == 0 else []
        of_nets = []
        for position in range(len(segment.couplings) - 1, -1, -1):
            coupling = segment.couplings[position]
            active, passive = (0, 1) if coupling.first else (1, 0)
            shared = index == 0 and all(each.first == coupling.first for each in segment.couplings[:position])
            halves[active], grad_halves[active], grad_passive, grad_table, grad_weights = kernel(
                entering[passive] if shared else halves[passive], halves[active], *operands[index].net(position),
                pairs, shared, *coupling.settings, grad_halves[active], grad_log_det)
            grad_halves[passive] = grad_halves[passive] + grad_passive
            of_nets = [grad_table, *grad_weights, *of_nets]
        grad = torch.cat(grad_halves, 1)
        if index == 0:
            grad = _row_sums(grad, pairs, z.shape[0], classes_of(operands))
        if affine:
            matrix, center, shift = affine
            grad_shift = grad.sum(0)
            of_map = [grad.T @ (before if center is None else before - center),
                      None if center is None else -(grad_shift @ matrix), None if shift is None else grad_shift]
            grad, grads = grad @ matrix, [*of_map, *of_nets, *grads]
        else:
            grads = [*of_nets, *grads]
    return [grad, grad_scales, *grads]


def classes_of(operands: list[Operands]) -> int:
    return operands[0].nets[0][0].shape[0]


def _row_sums(values: Tensor, pairs: Tensor | None, rows: int, classes: int) -> Tensor:
    """The sum over each row's pairs, [rows, D], in a fixed order."""
    if pairs is None:
        return values.view(rows, classes, values.shape[1]).sum(1)
    lengths = torch.bincount(pairs // classes, minlength=rows)
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
