"""All pairs (row, class) through a conditional flow, as one node of autograd that keeps no activations.

    z [B, D] -> segment -> ... -> segment -> z_h [B K, D], log_det [B K]        (`class_walk`)

Pair b K + k is row b with class k. Kept for backward are the outputs of the segments, as many numbers a pair as their
widths sum to (4.7 KB in the published head of SCNF, 2 % of what its layers would keep), while these take at most
MOST_KEPT bytes. Beyond that nothing is kept, and backward computes forward again for as many rows at a time as do.

Where nothing is kept, a CPU goes forward through as many rows at a time as have states of MOST_HELD bytes: each chunk
packs the weights anew, and the memory of one serves the next.

With a threshold backward leaves out the pairs whose share of their row's gradient is at most that: where a posterior is
sharp, a row costs a pair or two instead of K. Which pairs are left is known to the host only after a synchronisation,
so forward keeps nothing.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops.class_walk import Plan, Segment, back, classes_of, operands_of, through
from fastflow.ops.residual_coupling import backward_op, forward_op, reference

MOST_KEPT = 2**28  # bytes
MOST_HELD = 2**21


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


def _most_pairs(z: Tensor, layout: tuple[Segment, ...]) -> int:
    """How many pairs' outputs of segments fit into MOST_KEPT bytes."""
    width, numbers = z.shape[1], 0
    for segment in layout:
        numbers, width = numbers + width, width - segment.leaving
    return max(1, MOST_KEPT // (numbers * z.element_size()))


def _most_held(z: Tensor, layout: tuple[Segment, ...]) -> int:
    """How many pairs go forward together where nothing is kept."""
    if z.device.type != "cpu" or torch.compiler.is_compiling():  # a graph is to serve any number of rows
        return _most_pairs(z, layout)
    return MOST_HELD // (z.shape[1] * z.element_size())


def _row_chunks(rows: int, classes: int, most_pairs: int) -> list[slice]:
    """About as large as each other, so that each fits into the memory of the one before."""
    count = max(1, -(-rows // max(1, most_pairs // classes)))
    return [slice(*each) for each in pairwise(rows * n // count for n in range(count + 1))]


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
        operands = operands_of(layout, tensors, products)
        rows, classes = z.shape[0], classes_of(operands)
        if keep and rows * classes <= _most_pairs(z, layout):
            return through(z, layout, operands, scales, None, kernel, keep=True)
        chunks = _row_chunks(rows, classes, _most_held(z, layout))
        found = [through(z[rows], layout, operands, scales, None, kernel, keep=False)[:2] for rows in chunks]
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
        operands, grad_log_det = operands_of(layout, tensors, ctx.products), grad_log_det.contiguous()
        forward, backward = (op.kernel(ctx.backend, z.device.type) for op in (forward_op, backward_op))
        classes = classes_of(operands)
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
            outputs = states or through(z[rows], layout, operands, scales, pairs, forward, keep=True)[2]
            grad_z[rows], *found = back(z[rows], layout, operands, scales, pairs, outputs, backward, *grads)
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
        operands = operands_of(ctx.layout, tensors, ctx.products)
        log_det, z_h, _ = through(z, ctx.layout, operands, scales, None, reference, keep=False)
        outputs, grads = ((log_det,), (grad_log_det,)) if scales is not None else (
            (log_det, z_h), (grad_log_det, grad_z_h))
        wanted = [each for each, need in zip(apart, asked, strict=True) if need]
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, allow_unused=True))
        return [next(found) if need else None for need in asked]
