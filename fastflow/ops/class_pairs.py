"""All pairs (row, class) through a conditional flow, as one node of autograd that keeps no activations.

    z [B, D] -> segment -> ... -> segment -> z_h [B K, D], log_det [B K]
    segment: an affine map of the features, at most two residual couplings of their halves, features that leave

Pair b K + k is row b with class k. Up to the first coupling nothing depends on the class, and the state has one row a
row of z: the first map, and what the first coupling makes of its passive half by the first linear layer, are computed
once for all classes. Kept for backward are the outputs of the segments, as many numbers a pair as their widths sum to
(4.7 KB in the published head of SCNF, 2 % of what its layers would keep), while these take at most MOST_KEPT bytes.
Beyond that nothing is kept, and backward computes forward again for as many rows at a time as do. Each coupling goes
back from its output, by `residual_coupling_backward`.

Where nothing is kept, a CPU goes forward through as many rows at a time as have states of MOST_HELD bytes. A coupling
packs its weights anew for each of these chunks, which takes as long as about ten pairs.

With a threshold backward leaves out the pairs whose share of their row's gradient is at most that: where a posterior is
sharp, a row costs a pair or two instead of K. Which pairs are left is known to the host only after a synchronisation,
so forward keeps nothing.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow import _backend
from fastflow.ops.residual_coupling import backward_op, forward_op, reference

MOST_KEPT = 2**28  # bytes
MOST_HELD = 2**19


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


class _Operands(NamedTuple):
    """The tensors of one segment, and the dtype of the products."""

    affine: list[Tensor | None]
    nets: list[tuple[Tensor, list[Tensor]]]
    products: torch.dtype

    def net(self, index: int) -> tuple[Tensor, list[Tensor]]:
        """(table, weights) as `residual_coupling` takes them: matrices cast when they are needed, not all at once."""
        table, weights = self.nets[index]
        return table, [each.to(self.products if each.dim() == 2 else each.dtype).contiguous() for each in weights]


def class_pairs(z: Tensor, plan: Plan, products: torch.dtype, threshold: float | None) -> tuple[Tensor, Tensor]:
    """(log_det [B K], z_h [B K, D] or, with scales, empty), differentiable; arguments are trusted.

    z          [B, D], float32 or float64, as the tensors of the plan
    products   dtype of the matrices that conditioners multiply by
    threshold  backward leaves out pairs with |grad log_det| at most threshold times its sum over the row's pairs; None,
               and always under torch.compile, which cannot ask the device: none
    """
    threshold = None if torch.compiler.is_compiling() else threshold
    given = (_backend.forced(), z, plan.scales, *plan.tensors)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in given[1:]):
        return _ClassPairs.apply(plan.layout, products, threshold, *given)
    return _all_pairs(plan.layout, products, False, *given)[:2]


def _operands(layout: tuple[Segment, ...], tensors: tuple[Tensor | None, ...], products: torch.dtype,
              ) -> list[_Operands]:
    given, found = iter(tensors), []
    for segment in layout:
        affine = [next(given) for _ in range(3 if segment.mapped else 0)]
        nets = [(next(given), [next(given) for _ in range(each.weights)]) for each in segment.couplings]
        found.append(_Operands(affine, nets, products))
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


def _through(z: Tensor, layout: tuple[Segment, ...], operands: list[_Operands], scales: Tensor | None,
             pairs: Tensor | None, kernel: Callable, keep: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(log_det, z_h, the output of each segment or, unless they are kept, none) of the given pairs, or of all."""
    state, log_det, states, left = z, None, [], []
    for index, (segment, given) in enumerate(zip(layout, operands, strict=True)):
        halves, shared = _halves(state, given.affine, segment.boundary), [index == 0] * 2
        del state  # or it would take its memory until the couplings are through
        for position, coupling in enumerate(segment.couplings):
            active, passive = (0, 1) if coupling.first else (1, 0)
            halves[active], log_det = kernel(halves[passive], halves[active], log_det, *given.net(position), pairs,
                                             shared[passive], shared[active], *coupling.settings)
            shared[active] = False
        if index == 0 and any(shared):
            classes = _classes(operands)
            halves = [half if not still else half.repeat_interleave(classes, 0) if pairs is None else
                      half[pairs // classes] for half, still in zip(halves, shared, strict=True)]
        state = torch.cat(halves, 1)
        if keep:
            states.append(state)
        if index < len(layout) - 1:
            left.append(state[:, : segment.leaving].clone())
            state = state[:, segment.leaving :]
    z_h = torch.cat([*left, state], 1)
    if scales is None:
        return log_det, z_h, states
    return log_det - 0.5 * (z_h / scales).square().sum(1), z_h.new_empty(0), states


def _back(z: Tensor, layout: tuple[Segment, ...], operands: list[_Operands], scales: Tensor | None,
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
            grad = _row_sums(grad, pairs, z.shape[0], _classes(operands))
        if affine:
            matrix, center, shift = affine
            grad_shift = grad.sum(0)
            of_map = [grad.T @ (before if center is None else before - center),
                      None if center is None else -(grad_shift @ matrix), None if shift is None else grad_shift]
            grad, grads = grad @ matrix, [*of_map, *of_nets, *grads]
        else:
            grads = [*of_nets, *grads]
    return [grad, grad_scales, *grads]


def _classes(operands: list[_Operands]) -> int:
    return operands[0].nets[0][0].shape[0]


def _row_sums(values: Tensor, pairs: Tensor | None, rows: int, classes: int) -> Tensor:
    """The sum over each row's pairs, [rows, D], in a fixed order."""
    if pairs is None:
        return values.view(rows, classes, values.shape[1]).sum(1)
    lengths = torch.bincount(pairs // classes, minlength=rows)
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)


def _most_pairs(z: Tensor, layout: tuple[Segment, ...]) -> int:
    """How many pairs' outputs of segments fit into MOST_KEPT bytes."""
    width, numbers = z.shape[1], 0
    for segment in layout:
        numbers, width = numbers + width, width - segment.leaving
    return max(1, MOST_KEPT // (numbers * z.element_size()))


def _most_held(z: Tensor, layout: tuple[Segment, ...]) -> int:
    """How many pairs go forward together where nothing is kept; compiled, all that can: a graph of any number of rows."""
    if z.device.type != "cpu" or torch.compiler.is_compiling():
        return _most_pairs(z, layout)
    return MOST_HELD // (z.shape[1] * z.element_size())


def _row_chunks(rows: int, classes: int, most_pairs: int) -> list[slice]:
    step = max(1, most_pairs // classes)
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)] or [slice(0, 0)]


def _chosen_chunks(z: Tensor, layout: tuple[Segment, ...], chosen: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, pairs of those rows) of the pairs that are True in chosen [B, K]."""
    total, most = chosen.sum(1).cumsum(0), _most_pairs(z, layout)
    count = int(total[-1]) if len(total) else 0
    marks = torch.arange(most, max(most, count), most, device=z.device)
    edges = sorted({0, *torch.searchsorted(total, marks, right=True).tolist(), z.shape[0]})
    for first, last in pairwise(edges):
        pairs = chosen[first:last].flatten().nonzero()[:, 0]
        if len(pairs):
            yield slice(first, last), pairs


def _all_pairs(layout, products, keep, backend, z, scales, *tensors) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(log_det, z_h, the segments' outputs or, unless they are kept and take at most MOST_KEPT bytes, none)."""
    kernel = forward_op.kernel(backend, z.device.type)
    with torch.autocast(z.device.type, enabled=False):
        operands = _operands(layout, tensors, products)
        rows, classes = z.shape[0], _classes(operands)
        if keep and rows * classes <= _most_pairs(z, layout):
            return _through(z, layout, operands, scales, None, kernel, keep=True)
        chunks = _row_chunks(rows, classes, _most_held(z, layout))
        found = [_through(z[rows], layout, operands, scales, None, kernel, keep=False)[:2] for rows in chunks]
    return *(torch.cat(each) for each in zip(*found, strict=True)), []


class _ClassPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, products, threshold, backend, z, scales, *tensors):
        log_det, z_h, states = _all_pairs(layout, products, threshold is None, backend, z, scales, *tensors)
        ctx.layout, ctx.products, ctx.threshold, ctx.backend = layout, products, threshold, backend
        ctx.inputs = 2 + len(tensors)
        ctx.save_for_backward(z, scales, *tensors, *states)
        if scales is not None:
            ctx.mark_non_differentiable(z_h)
        return log_det, z_h

    @staticmethod
    def backward(ctx, grad_log_det, grad_z_h):
        inputs, states = ctx.saved_tensors[: ctx.inputs], ctx.saved_tensors[ctx.inputs :]
        asked = ctx.needs_input_grad[4:]
        with torch.autocast(grad_log_det.device.type, enabled=False):
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                grads = _ClassPairs._differentiable(ctx, inputs, asked, grad_log_det, grad_z_h)
            else:
                grads = _ClassPairs._gradients(ctx, inputs, list(states), grad_log_det, grad_z_h)
        return *[None] * 4, *(grad if wanted else None for grad, wanted in zip(grads, asked, strict=True))

    @staticmethod
    def _gradients(ctx, inputs, states, grad_log_det, grad_z_h) -> list[Tensor | None]:
        (z, scales, *tensors), layout = inputs, ctx.layout
        operands, grad_log_det = _operands(layout, tensors, ctx.products), grad_log_det.contiguous()
        forward, backward = (op.kernel(ctx.backend, z.device.type) for op in (forward_op, backward_op))
        classes = _classes(operands)
        if ctx.threshold is None:
            chunks = [(rows, None) for rows in _row_chunks(z.shape[0], classes, _most_pairs(z, layout))]
        else:
            share = grad_log_det.view(-1, classes).abs()
            # A NaN is not below any threshold: it must reach the gradients.
            chunks = _chosen_chunks(z, layout, ~(share <= ctx.threshold * share.sum(1, keepdim=True)))
        grad_z, total = torch.zeros_like(z), None
        for rows, pairs in chunks:
            results = slice(rows.start * classes, rows.stop * classes)
            grads = [grad_log_det[results], grad_z_h if scales is not None else grad_z_h[results]]
            if pairs is not None:
                grads = [grads[0][pairs], grads[1] if scales is not None else grads[1][pairs]]
            outputs = states or _through(z[rows], layout, operands, scales, pairs, forward, keep=True)[2]
            grad_z[rows], *found = _back(z[rows], layout, operands, scales, pairs, outputs, backward, *grads)
            total = found if total is None else [
                None if mine is None else mine + other for mine, other in zip(total, found, strict=True)]
        if total is None:
            total = [None if each is None else torch.zeros_like(each) for each in inputs[1:]]
        return [grad_z, *total]

    @staticmethod
    def _differentiable(ctx, inputs, asked, grad_log_det, grad_z_h) -> list[Tensor | None]:
        """Under create_graph=True the gradients themselves are differentiated: only the reference can be."""
        # A layer that comes twice has its tensors twice among the inputs: each place has a gradient of its own.
        z, scales, *tensors = apart = [None if each is None else each.view_as(each) for each in inputs]
        log_det, z_h, _ = _through(z, ctx.layout, _operands(ctx.layout, tensors, ctx.products), scales, None, reference,
                                    keep=False)
        outputs, grads = ((log_det,), (grad_log_det,)) if scales is not None else (
            (log_det, z_h), (grad_log_det, grad_z_h))
        wanted = [each for each, need in zip(apart, asked, strict=True) if need]
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
        return [next(found) if need else None for need in asked]
