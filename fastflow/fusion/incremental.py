"""The inverse of an affine autoregressive map by stages, and its gradient.

Every value lies unit by unit, [units, B], sorted by stage: what a stage adds to it is a run of rows. The gradient walks
the stages backwards, to v = dL/dx; those of the weights are then of one pass of the network at the x that is known.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastflow.fusion.masked_network import Node, Plan, evaluate
from fastflow.fusion.univariate import Univariate

CHUNK = 1024  # rows whose units stay in a core's cache

Vectors = list[Tensor | None]
Runs = tuple[Tensor, ...]
Step = Callable[[int], None]  # what a node does in a stage


class Problem(NamedTuple):
    """A network, its plan, the plan's orders, and what the network's output means."""

    plan: Plan
    orders: Runs
    nodes: list[Node]
    univariate: Univariate

    def sorted(self, rows: Tensor, value: int, dim: int = 0) -> Tensor:
        """The units of a value in the order of their stages."""
        place = self.plan.places[value]
        return rows if place is None else rows.index_select(dim, self.orders[place])

    def by_unit(self, x: Tensor, value: int) -> Tensor:
        """[units, B], sorted and in memory of its own, of [B, units]; [units, 1] of [units]."""
        columns = x[:, None] if x.dim() == 1 else x.t()
        return self.sorted(columns.clone(memory_format=torch.contiguous_format), value)

    def by_row(self, rows: Tensor, value: int) -> Tensor:
        """Undoes `by_unit`."""
        place = self.plan.places[value]
        return (rows if place is None else rows.index_select(0, self.orders[place + 1])).t().contiguous()

    def sorted_weights(self, weights: list[Tensor]) -> list[Tensor]:
        linear = [(value, node.source) for value, node in enumerate(self.nodes, 1) if node.kind == "linear"]
        return [self.sorted(self.sorted(weight, value), source, dim=1)
                for weight, (value, source) in zip(weights, linear, strict=True)]


def passes(conditioner: Callable[[Tensor], Tensor], univariate: Univariate, z: Tensor, count: int) -> Tensor:
    """The network's output [B, features * parameters] at the x of z, by passes of all of it: the definition."""
    x = torch.zeros_like(z)
    for _ in range(count - 1):
        x, _ = univariate(z, conditioner(x), inverse=True)
    return conditioner(x)


def solve(problem: Problem, weights: list[Tensor], vectors: Vectors, z: Tensor) -> Tensor:
    """What `passes` gives, by stages. Weights and vectors as in `Network`, all of one dtype; B > 0."""
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (z, *weights, *vectors)):
        return _Solve.apply(problem, len(weights), z, *weights, *vectors)
    return _solve(problem, weights, vectors, z)


def _solve(problem: Problem, weights: list[Tensor], vectors: Vectors, z: Tensor) -> Tensor:
    weights, made = problem.sorted_weights(weights), []
    for start in range(0, len(z), CHUNK):
        rows = slice(start, start + CHUNK)
        own = [each if each is None or each.dim() == 1 else each[rows] for each in vectors]
        made.append(problem.by_row(_advance(problem, weights, own, z[rows]), -1))
    return made[0] if len(made) == 1 else torch.cat(made)


def _advance(problem: Problem, weights: list[Tensor], vectors: Vectors, z: Tensor) -> Tensor:
    """The network's output, sorted: each stage computes of every value what it can, and then its features."""
    plan, univariate = problem.plan, problem.univariate
    z = problem.by_unit(z, 0)
    x = torch.empty_like(z, dtype=weights[0].dtype)
    values, runs, steps, weights, vectors = [x], [x.split(plan.counts[0])], [], iter(weights), iter(vectors)
    for value, node in enumerate(problem.nodes, 1):
        counts, source, step = plan.counts[value], values[node.source], None
        if node.kind == "linear":
            made = _filled(problem, next(vectors), value, x)
        else:
            made = source if plan.buffers[value] != value else torch.empty_like(source)
        values.append(made)
        runs.append(runs[node.source] if made is source else made.split(counts))
        if node.kind == "linear":
            step = _linear(next(weights).split(counts), source, plan.known[node.source], runs[value])
        elif node.kind == "activation":
            step = _activation(node.function, runs[node.source], runs[value])
        elif node.kind == "sum":
            step = _sum(runs[node.source], runs[node.other], runs[value])
        else:
            factor, shift = (each if each is None else problem.by_unit(each, value).split(counts)
                             for each in (next(vectors), next(vectors)))
            step = _scale(runs[node.source], factor, shift, runs[value])
        steps.append((counts, step))
    each = plan.counts[0]
    z, (scale, shift) = z.split(each), univariate.split(made)
    scale, shift = None if scale is None else scale.split(each), shift.split(each)
    for stage in range(plan.stages):
        for counts, step in steps:
            if counts[stage]:
                step(stage)
        runs[0][stage].copy_(univariate.invert(z[stage], None if scale is None else scale[stage], shift[stage]))
    return made


def _filled(problem: Problem, offset: Tensor | None, value: int, x: Tensor) -> Tensor:
    """A value of a linear node before anything is added to its offset."""
    shape = sum(problem.plan.counts[value]), x.shape[1]
    if offset is None:
        return x.new_zeros(shape)
    offset = problem.by_unit(offset, value)
    return offset if offset.shape == shape else offset.expand(shape).contiguous()


def _linear(weight: Runs, source: Tensor, known: tuple[int, ...], target: Runs) -> Step:
    def step(stage: int) -> None:
        first = known[stage]
        if first:
            target[stage].addmm_(weight[stage][:, :first], source[:first])

    return step


def _activation(function: Callable[[Tensor], Tensor], source: Runs, target: Runs) -> Step:
    def step(stage: int) -> None:
        target[stage].copy_(function(source[stage]))

    return step


def _sum(source: Runs, other: Runs, target: Runs) -> Step:
    def step(stage: int) -> None:
        torch.add(source[stage], other[stage], out=target[stage])

    return step


def _scale(source: Runs, factor: Runs | None, shift: Runs | None, target: Runs) -> Step:
    def step(stage: int) -> None:
        made = source[stage]
        made = made if factor is None else made * factor[stage]
        target[stage].copy_(made if shift is None else made + shift[stage])

    return step


class _Solve(torch.autograd.Function):
    """Saves what it is given and its output."""

    @staticmethod
    def forward(ctx, problem, count, z, *tensors):
        made = _solve(problem, list(tensors[:count]), list(tensors[count:]), z)
        ctx.problem, ctx.count = problem, count
        ctx.save_for_backward(made, z, *tensors)
        return made

    @staticmethod
    def backward(ctx, grad_made):
        made, z, *tensors = ctx.saved_tensors
        problem, count, wanted = ctx.problem, ctx.count, ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # under create_graph=True the gradient itself is differentiated
            network = partial(evaluate, problem.nodes, tensors[:count], tensors[count:])
            again = passes(lambda x: network(x)[-1], problem.univariate, z, problem.plan.stages)
            given = [each for each, want in zip((z, *tensors), wanted, strict=True) if want]
            found = iter(torch.autograd.grad(again, given, grad_made, create_graph=True, allow_unused=True))
            return None, None, *(next(found) if want else None for want in wanted)
        grad_z, grads = _gradients(problem, made, z, tensors, count, grad_made, wanted[1:])
        return None, None, grad_z if wanted[0] else None, *grads


def _gradients(problem: Problem, made: Tensor, z: Tensor, tensors: list[Tensor | None], count: int, grad_made: Tensor,
               wanted: tuple[bool, ...]) -> tuple[Tensor, list[Tensor | None]]:
    x = problem.univariate(z, made, inverse=True)[0].to(made.dtype).requires_grad_()
    leaves = [each if each is None else each.detach().requires_grad_(want)
              for each, want in zip(tensors, wanted, strict=True)]
    with torch.enable_grad():
        values = evaluate(problem.nodes, leaves[:count], leaves[count:], x)
    grad_z, grad_made = _retreat(problem, tensors[:count], tensors[count:], values, grad_made)
    given = [each for each, want in zip(leaves, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(values[-1], given, grad_made, allow_unused=True) if given else ())
    return grad_z.to(z.dtype), [next(found) if want else None for want in wanted]


def _retreat(problem: Problem, weights: list[Tensor], vectors: Vectors, values: list[Tensor], grad_made: Tensor,
             ) -> tuple[Tensor, Tensor]:
    """Gradients [B, features] of z and [B, features * parameters] of the network's output, which is that of L itself
    and what comes through the features: a stage completes those of its features, and then of all that they read."""
    plan = problem.plan
    x, made, total = (problem.by_unit(each.detach(), value) for each, value in
                      ((values[0], 0), (values[-1], -1), (grad_made, -1)))
    by_z, by_made = problem.univariate.slopes(x, made)
    grads, runs, first, rest = [torch.zeros_like(x)], [], [], []
    runs.append(grads[0].split(plan.counts[0]))
    weights, vectors = iter(problem.sorted_weights(weights)), iter(vectors)
    for value, node in enumerate(problem.nodes, 1):
        shared = plan.buffers[value] != value
        counts = plan.counts[value]
        if value == len(problem.nodes):
            grads.append(total)
        else:
            grads.append(grads[node.source] if shared else x.new_zeros(sum(counts), x.shape[1]))
        runs.append(runs[node.source] if shared else grads[value].split(counts))
        if node.kind == "linear":
            next(vectors)
            step = _linear_back(next(weights).t().contiguous().split(plan.counts[node.source]), grads[value],
                                plan.known[value], runs[node.source], of_input=not node.source)
            (rest if node.source else first).append((plan.counts[node.source], step))
        elif node.kind == "sum":
            rest.append((counts, _sum_back(runs[value], (runs[node.other],) if shared else
                                           (runs[node.source], runs[node.other]))))
        else:
            if node.kind == "activation":
                slope, = torch.autograd.grad(values[value], values[node.source], torch.ones_like(values[value]),
                                             retain_graph=True)
            else:
                slope, _ = next(vectors), next(vectors)
            slope = slope if slope is None else problem.by_unit(slope, value).split(counts)
            rest.append((counts, _scale_back(runs[value], slope, runs[node.source], shared)))
    each, rest = plan.counts[0], rest[::-1]
    of_features = total.view(by_made.shape).split(each)
    by_made, of_x = by_made.split(each), grads[0][:, None].split(each)
    for stage in range(plan.stages)[::-1]:
        for _, step in first:
            step(stage)
        of_features[stage].addcmul_(by_made[stage], of_x[stage])
        for counts, step in rest:
            if counts[stage]:
                step(stage)
    return problem.by_row(grads[0] * by_z, 0), problem.by_row(total, -1)


def _linear_back(weight: Runs, grad: Tensor, known: tuple[int, ...], of_source: Runs, of_input: bool) -> Step:
    last = known[-1]

    def step(stage: int) -> None:
        """The units of the stage are read in it and later; the features of the stage only later."""
        first = known[stage] if of_input else known[stage - 1] if stage else 0
        if first < last:
            of_source[stage].addmm_(weight[stage][:, first:last], grad[first:last])

    return step


def _sum_back(grad: Runs, others: tuple[Runs, ...]) -> Step:
    def step(stage: int) -> None:
        for other in others:
            other[stage].add_(grad[stage])

    return step


def _scale_back(grad: Runs, slope: Runs | None, of_source: Runs, shared: bool) -> Step:
    def step(stage: int) -> None:
        if not shared:
            of_source[stage].addcmul_(grad[stage], 1 if slope is None else slope[stage])
        elif slope is not None:
            grad[stage].mul_(slope[stage])

    return step
