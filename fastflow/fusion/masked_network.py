"""A masked network as a list of nodes, and the stages by which an autoregressive inverse comes to know its units.

A stage finds the features whose parameters depend on none but those of earlier stages. A unit belongs to the first
stage before which all features that it depends on are known. Sorted by stage, what a stage adds to a value is a run of
units, and what it reads is a run from the first unit on.
"""

import collections
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.fusion.layer import digest, is_customised


class Unsupported(Exception):
    """Why a network's inverse takes passes of the whole network."""


class Node(NamedTuple):
    """One operation of a network. Value 0 is the network's input, value k + 1 what node k makes of earlier ones.

        linear       weight source + offset       a weight, a vector
        activation   function(source), element by element
        scale        factor source + shift        two vectors
        sum          source + other
    """

    kind: str
    source: int
    other: int = 0
    function: Callable[[Tensor], Tensor] | None = None


class Network:
    """The nodes of a masked network and their tensors, as an adapter reads them off a module.

    The first node is linear and alone reads the input; the last is linear and the output.

    weights  of the linear nodes, masked
    masks    of the same
    vectors  of the linear and scale nodes: None, [units] or, where they come of the context, [B, units]
    varies   why another pass may make something else of the same input; empty where it does not
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.weights: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.vectors: list[Tensor | None] = []
        self.varies = ""

    def linear(self, source: int, module: nn.Module, added: Tensor | None = None, features: int | None = None) -> int:
        """A masked linear module, of whose inputs the first `features` count; `added` joins its bias."""
        expect(module, _LINEAR_CODE)
        offset = module.bias
        if added is not None:
            offset = added if offset is None else offset + added
        mask = module.mask[:, :features]
        self.masks.append(mask)
        self.weights.append(module.weight[:, :features] * mask)
        return self._add(Node("linear", source), offset)

    def activation(self, source: int, function: Callable[[Tensor], Tensor]) -> int:
        return self._add(Node("activation", source, function=elementwise(function)))

    def scale(self, source: int, factor: Tensor | None, shift: Tensor | None = None) -> int:
        return self._add(Node("scale", source), factor, shift)

    def sum(self, source: int, other: int) -> int:
        return self._add(Node("sum", source, other))

    def batch_norm(self, source: int, module: nn.Module) -> int:
        """The statistics that the module has; those of the batch vary."""
        expect(module)
        if type(module) is not nn.BatchNorm1d or module.running_mean is None:
            raise Unsupported("its batch norm is not one with running statistics")
        if module.training:
            self.varies = "its batch norm takes the statistics of the batch"
        factor = (module.running_var + module.eps).rsqrt()
        if module.weight is not None:
            factor = factor * module.weight
        shift = -module.running_mean * factor
        return self.scale(source, factor, shift if module.bias is None else shift + module.bias)

    def dropout(self, source: int, module: nn.Module) -> int:
        """The source itself: a dropout that drops varies."""
        expect(module)
        if type(module) is not nn.Dropout:
            raise Unsupported(f"its dropout is a {type(module).__name__}")
        if module.training and module.p > 0:
            self.varies = "its dropout is active"
        return source

    def _add(self, node: Node, *vectors: Tensor | None) -> int:
        self.nodes.append(node)
        self.vectors += vectors
        return len(self.nodes)


_LINEAR_CODE = ("16c8c55eefd6", "8818233af40c")


def expect(module: nn.Module, digests: tuple[str, ...] = ()) -> None:
    """Raises Unsupported unless a call of the module is its class's forward, of this code if any is named, and no more.
    """
    if digests and digest(type(module), ("forward",)) not in digests:
        raise Unsupported(f"the code of its {type(module).__name__} is not that of a known release")
    if is_customised(module):
        raise Unsupported(f"its {type(module).__name__} has a hook or a forward of its own")


_FUNCTIONS = (F.relu, torch.relu, F.tanh, torch.tanh, F.elu, F.leaky_relu, F.silu, F.gelu, F.sigmoid, torch.sigmoid,
              F.softplus)
_MODULES = (nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Softplus, nn.Identity)


def elementwise(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function itself, or a module's; raises Unsupported for one that is not known to act element by element."""
    if function in _FUNCTIONS:
        return function
    if type(function) not in _MODULES:
        raise Unsupported(f"its activation is {getattr(function, '__name__', type(function).__name__)}")
    expect(function)
    if getattr(function, "inplace", False):
        raise Unsupported("its activation works in place")
    return function.forward


def evaluate(nodes: list[Node], weights: list[Tensor], vectors: list[Tensor | None], x: Tensor) -> list[Tensor]:
    """Every value of the network, [B, units], for x [B, features]."""
    values, weights, vectors = [x], iter(weights), iter(vectors)
    for node in nodes:
        made = values[node.source]
        if node.kind == "linear":
            weight, offset = next(weights), next(vectors)
            joined = offset is None or offset.dim() == 1
            made = F.linear(made, weight, offset) if joined else F.linear(made, weight) + offset
        elif node.kind == "activation":
            made = node.function(made)
        elif node.kind == "scale":
            factor, shift = next(vectors), next(vectors)
            made = made if factor is None else made * factor
            made = made if shift is None else made + shift
        else:
            made = made + values[node.other]
        values.append(made)
    return values


class Plan(NamedTuple):
    """Which units of each value every stage adds, once its units are sorted by stage.

    stages   how many stages the inverse takes
    counts   [value][stage] units that the stage adds; last, those that no parameter depends on
    known    [value][stage] units that the stage's linear nodes may read
    places   [value] of its order among `orders`; None where its units are sorted as they are
    sizes    lengths of the parts of `orders`: for each, the units in order, and the places of the units
    buffers  [value] the value whose memory it takes: an elementwise node that alone reads its source works in place
    """

    stages: int
    counts: tuple[tuple[int, ...], ...]
    known: tuple[tuple[int, ...], ...]
    places: tuple[int | None, ...]
    sizes: tuple[int, ...]
    buffers: tuple[int, ...]


def make_plan(network: Network, features: int) -> tuple[Plan, Tensor]:
    """(the plan, all orders in one int64 vector). Raises Unsupported if no order of the features is autoregressive."""
    stages_of = _stages_of_units(network, features)
    stages = int(stages_of[0].max()) + 1
    counts, known, places, orders = [], [], [], []
    for value, stage in enumerate(stages_of):
        node = network.nodes[value - 1]
        if value and node.kind != "linear":
            for each in (counts, known, places):
                each.append(each[node.source])
            continue
        added = stage.bincount(minlength=stages + 1).tolist()
        counts.append(tuple(added))
        ends = tuple(itertools.accumulate(added))
        known.append(ends[:stages] if value else (0, *ends[:stages - 1]))
        order = stage.argsort(stable=True)
        back = order.argsort()
        places.append(None if torch.equal(order, torch.arange(len(order))) else len(orders))
        if places[-1] is not None:
            orders += order, back
    sizes = tuple(map(len, orders))
    joined = torch.cat(orders) if orders else torch.empty(0, dtype=torch.int64)
    return (Plan(stages, tuple(counts), tuple(known), tuple(places), sizes, _buffers(network.nodes)),
            joined.to(network.masks[0].device))


def _stages_of_units(network: Network, features: int) -> list[Tensor]:
    """[value] -> [units] the first stage that can compute each; of the input, the stage that makes each known."""
    depends = [torch.eye(features)]  # [value] -> [units, features], 1 where the unit depends on the feature
    masks = iter(network.masks)
    for node in network.nodes:
        source = depends[node.source]
        if node.kind == "linear":
            source = ((next(masks) != 0).float().cpu() @ source).clamp(max=1)
        elif node.kind == "sum":
            source = (source + depends[node.other]).clamp(max=1)
        depends.append(source)
    parameters = len(depends[-1]) // features
    known = _stages_of_features(depends[-1].view(features, parameters, features).amax(1))
    stages = [(units * (known + 1)).amax(1).long() for units in depends]
    stages[0], stages[-1] = known.long(), known.long().repeat_interleave(parameters)
    for value, node in enumerate(network.nodes, 1):
        if node.kind == "sum" and not (
                torch.equal(stages[node.source], stages[value]) and torch.equal(stages[node.other], stages[value])):
            raise Unsupported("its residual blocks join units that depend on different features")
    return stages


def _stages_of_features(depends: Tensor) -> Tensor:
    """[features] the stage after the last of those that each depends on. depends [features, features]."""
    waits, stages = depends.sum(1), torch.full((len(depends),), -1.0)
    for stage in range(len(depends)):
        ready = (waits == 0) & (stages < 0)
        stages[ready] = stage
        waits = waits - depends[:, ready].sum(1)
    if (stages < 0).any():
        raise Unsupported("its masks make features depend on each other")
    return stages


def _buffers(nodes: list[Node]) -> tuple[int, ...]:
    readers = collections.Counter(each for node in nodes for each in (node.source, node.other))
    buffers = [0]
    for value, node in enumerate(nodes, 1):
        in_place = node.kind != "linear" and node.source > 0 and readers[node.source] == 1
        buffers.append(buffers[node.source] if in_place else value)
    return tuple(buffers)
