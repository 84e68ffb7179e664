"""The inverse of an affine autoregressive map by stages, and its gradient.

Every value lies unit by unit, [units, B], sorted by stage: what a stage adds to it is a run of rows, and what it reads
are rows from the first on. The gradient walks the stages backwards in the same way, and needs one pass of the network
at the x that is known: that of the parameters at this x is the network's own.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastflow.fusion.masked_network import Node, Plan, evaluate
from fastflow.fusion.univariate import Univariate

# Numbers that the values of a chunk of rows hold. A stage reads what earlier ones wrote, which fewer rows keep in the
# cache, at more calls. Caches differ by more than a factor of two, so that only the order of magnitude counts.
CHUNK = 4 * 2**20

Vectors = list[Tensor | None]
Runs = tuple[Tensor, ...]  # of a value, one a stage
Step = Callable[[int], object]  # what a node does in a stage


class Staged(NamedTuple):
    """A network whose output are the parameters of `univariate`, its plan, and the orders that the plan is about."""

    nodes: list[Node]
    univariate: Univariate
    plan: Plan
    orders: Runs

    def by_unit(self, x: Tensor, value: int) -> Tensor:
        """[units, B], sorted, in memory of its own, of [B, units]; [units, 1] of [units]."""
        columns = x[:, None] if x.dim() == 1 else x.t()
        return self._sorted(columns.clone(memory_format=torch.contiguous_format), value)

    def by_row(self, x: Tensor, value: int) -> Tensor:
        """Undoes `by_unit`."""
        place = self.plan.places[value]
        return (x if place is None else x.index_select(0, self.orders[place + 1])).t().contiguous()

    def sorted_weights(self, weights: list[Tensor]) -> list[Tensor]:
        linear = [(value, node.source) for value, node in enumerate(self.nodes, 1) if node.kind == "linear"]
        return [self._sorted(self._sorted(weight, value), source, dim=1)
                for weight, (value, source) in zip(weights, linear, strict=True)]

    def _sorted(self, x: Tensor, value: int, dim: int = 0) -> Tensor:
        place = self.plan.places[value]
        return x if place is None else x.index_select(dim, self.orders[place])


def solve_by_passes(conditioner: Callable[[Tensor], Tensor], univariate: Univariate, z: Tensor, count: int) -> Tensor:
    """What a network makes [B, features * parameters] of the x of z, by passes of all of it: the definition."""
    x = torch.zeros_like(z)
    for _ in range(count - 1):
        x, _ = univariate(z, conditioner(x), inverse=True)
    return conditioner(x)


def solve_by_stages(staged: Staged, weights: list[Tensor], vectors: Vectors, z: Tensor) -> Tensor:
    """What `solve_by_passes` gives. Weights and vectors as in `Network`, all of z's dtype; z [B, features], B > 0."""
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (z, *weights, *vectors)):
        return _SolveByStages.apply(staged, len(weights), z, *weights, *vectors)
    with torch.no_grad():
        return _in_chunks(staged, weights, vectors, z)


def _in_chunks(staged: Staged, weights: list[Tensor], vectors: Vectors, z: Tensor) -> Tensor:
    chunk = max(512, CHUNK // sum(sum(each.shape) for each in weights))
    weights, made = staged.sorted_weights(weights), []
    for start in range(0, len(z), chunk):
        rows = slice(start, start + chunk)
        own = [each if each is None or each.dim() == 1 else each[rows] for each in vectors]
        made.append(staged.by_row(_forward(staged, weights, own, z[rows]), -1))
    return made[0] if len(made) == 1 else torch.cat(made)


def _forward(staged: Staged, weights: list[Tensor], vectors: Vectors, z: Tensor) -> Tensor:
    """The network's output, sorted. A stage computes of every value what it can, and then its features."""
    nodes, univariate, plan, _ = staged
    z = staged.by_unit(z, 0)
    values = [torch.empty_like(z)]
    runs, steps = [values[0].split(plan.counts[0])], []
    weights, vectors = iter(weights), iter(vectors)
    for value, node in enumerate(nodes, 1):
        source, counts = values[node.source], plan.counts[value]
        if node.kind == "linear":
            values.append(_start(staged, next(vectors), value, z.shape[1], source))
        else:
            values.append(torch.empty_like(source) if plan.buffers[value] == value else source)
        runs.append(runs[node.source] if values[value] is source else values[value].split(counts))
        target, given = runs[value], runs[node.source]
        if node.kind == "linear":
            step = _linear(next(weights).split(counts), source, plan.known[node.source], target)
        elif node.kind == "activation":
            step = _activation(node.function, given, target)
        elif node.kind == "sum":
            step = _sum(given, runs[node.other], target)
        else:
            factor, shift = (_runs(staged, next(vectors), value) for _ in range(2))
            step = _scale(given, factor, shift, target)
        steps.append((counts, step))
    made, features = values[-1], plan.counts[0]
    z, x = z.split(features), runs[0]
    scale, shift = (None if each is None else each.split(features) for each in univariate.split(made))
    for stage in range(plan.stages):
        for counts, step in steps:
            if counts[stage]:
                step(stage)
        x[stage].copy_(univariate.invert(z[stage], None if scale is None else scale[stage], shift[stage]))
    return made


def _start(staged: Staged, offset: Tensor | None, value: int, rows: int, like: Tensor) -> Tensor:
    """A linear node's value, to which its products are added."""
    shape = sum(staged.plan.counts[value]), rows
    if offset is None:
        return like.new_zeros(shape)
    offset = staged.by_unit(offset, value)
    return offset if offset.shape == shape else offset.expand(shape).contiguous()


def _runs(staged: Staged, vector: Tensor | None, value: int) -> Runs | None:
    return None if vector is None else staged.by_unit(vector, value).split(staged.plan.counts[value])


def _linear(weight: Runs, source: Tensor, known: tuple[int, ...], target: Runs) -> Step:
    def step(stage: int) -> None:
        last = known[stage]
        if last:
            target[stage].addmm_(weight[stage][:, :last], source[:last])

    return step


def _activation(function: Callable[[Tensor], Tensor], source: Runs, target: Runs) -> Step:
    return lambda stage: target[stage].copy_(function(source[stage]))


def _sum(source: Runs, other: Runs, target: Runs) -> Step:
    return lambda stage: torch.add(source[stage], other[stage], out=target[stage])


def _scale(source: Runs, factor: Runs | None, shift: Runs | None, target: Runs) -> Step:
    def step(stage: int) -> None:
        made = source[stage] if factor is None else source[stage] * factor[stage]
        target[stage].copy_(made if shift is None else made + shift[stage])

    return step


class _SolveByStages(torch.autograd.Function):
    """Saves what it is given and its output."""

    @staticmethod
    def forward(ctx, staged, count, z, *tensors):
        made = _in_chunks(staged, list(tensors[:count]), list(tensors[count:]), z)
        ctx.staged, ctx.count = staged, count
        ctx.save_for_backward(made, z, *tensors)
        return made

    @staticmethod
    def backward(ctx, grad_made):
        made, z, *tensors = ctx.saved_tensors
        staged, wanted = ctx.staged, ctx.needs_input_grad[2:]
        weights, vectors = tensors[:ctx.count], tensors[ctx.count:]
        if torch.is_grad_enabled():  # under create_graph=True the gradients themselves are differentiated
            made = solve_by_passes(lambda x: evaluate(staged.nodes, weights, vectors, x)[-1], staged.univariate, z,
                                   staged.plan.stages)
            return None, None, *_gradients(made, grad_made, (z, *tensors), wanted, create_graph=True)
        x = staged.univariate(z, made, inverse=True)[0].requires_grad_()
        leaves = [None if each is None else each.detach().requires_grad_(want)
                  for each, want in zip(tensors, wanted[1:], strict=True)]
        with torch.enable_grad():
            values = evaluate(staged.nodes, leaves[:ctx.count], leaves[ctx.count:], x)
        grad_z, grad_made = _backward(staged, weights, vectors, values, grad_made)
        return None, None, grad_z, *_gradients(values[-1], grad_made, leaves, wanted[1:])


def _gradients(output: Tensor, grad: Tensor, inputs: tuple[Tensor | None, ...], wanted: tuple[bool, ...],
               create_graph: bool = False) -> list[Tensor | None]:
    """The gradients of the wanted inputs."""
    given = [each for each, want in zip(inputs, wanted, strict=True) if want]
    if not given:
        return [None] * len(inputs)
    found = iter(torch.autograd.grad(output, given, grad, create_graph=create_graph, allow_unused=True))
    return [next(found) if want else None for want in wanted]


def _backward(staged: Staged, weights: list[Tensor], vectors: Vectors, values: list[Tensor], grad_made: Tensor,
              ) -> tuple[Tensor, Tensor]:
    """Gradients of z, and of the network's output for z, of which `grad_made` is what does not come through x.

    A stage completes the gradient of its features, that of their parameters, and then that of all units of the stage.
    The values are recorded: their derivatives by each other are those of the activations.
    """
    nodes, univariate, plan, _ = staged
    x, made, grad_made = (staged.by_unit(each.detach(), value)
                          for each, value in ((values[0], 0), (values[-1], -1), (grad_made, -1)))
    grads, steps = [torch.zeros_like(x)], []
    runs = [grads[0].split(plan.counts[0])]
    weights, vectors = iter(staged.sorted_weights(weights)), iter(vectors)
    for value, node in enumerate(nodes, 1):
        counts, shared = plan.counts[value], plan.buffers[value] != value
        if value == len(nodes):
            grads.append(grad_made)
        else:
            grads.append(grads[node.source] if shared else x.new_zeros(sum(counts), x.shape[1]))
        runs.append(runs[node.source] if shared else grads[value].split(counts))
        given, target = runs[value], runs[node.source]
        if node.kind == "linear":
            next(vectors)
            counts = plan.counts[node.source]
            step = _linear_back(next(weights).t().contiguous().split(counts), grads[value], plan.known[value], target,
                                later=not node.source)
        elif node.kind == "sum":
            step = _sum_back(given, [runs[node.other]] if shared else [target, runs[node.other]])
        else:
            if node.kind == "scale":
                slope, _ = next(vectors), next(vectors)
            else:
                slope, = torch.autograd.grad(values[value], values[node.source], torch.ones_like(values[value]),
                                             retain_graph=True)
            step = _scale_back(given, _runs(staged, slope, value), target, shared)
        steps.append((node.source, counts, step))
    by_z, by_made = univariate.slopes(x, made)
    features = plan.counts[0]
    of_made, of_x = grad_made.view(by_made.shape).split(features), grads[0][:, None].split(features)
    of_features, by = [step for source, _, step in steps if not source], by_made.split(features)
    of_units = [(counts, step) for source, counts, step in reversed(steps) if source]
    for stage in reversed(range(plan.stages)):
        for step in of_features:
            step(stage)
        of_made[stage].addcmul_(by[stage], of_x[stage])
        for counts, step in of_units:
            if counts[stage]:
                step(stage)
    return staged.by_row(grads[0] * by_z, 0), staged.by_row(grad_made, -1)


def _linear_back(weight: Runs, grad: Tensor, known: tuple[int, ...], target: Runs, later: bool) -> Step:
    """Units are read in their own stage and later, the features of a stage only later."""
    last = known[-1]

    def step(stage: int) -> None:
        first = known[stage] if later else known[stage - 1] if stage else 0
        if first < last:
            target[stage].addmm_(weight[stage][:, first:last], grad[first:last])

    return step


def _sum_back(grad: Runs, targets: list[Runs]) -> Step:
    def step(stage: int) -> None:
        for target in targets:
            target[stage].add_(grad[stage])

    return step


def _scale_back(grad: Runs, slope: Runs | None, target: Runs, shared: bool) -> Step:
    """`shared`: the gradient's memory is the target's."""

    def step(stage: int) -> None:
        made = grad[stage] if slope is None else grad[stage] * slope[stage]
        if not shared:
            target[stage].add_(made)
        elif slope is not None:
            target[stage].copy_(made)

    return step
