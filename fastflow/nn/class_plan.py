"""From the layers of a conditional flow to the `Plan` by which all pairs (row, class) go through it at once.

Layers are read, not called: the maps that follow each other become one map, a coupling's `ResidualMLP` the weights of
`residual_coupling`, and what it makes of the classes' vectors one table, once a call. All of it is differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.nn.act_norm import ActNorm
from fastflow.nn.conditioners import ResidualMLP, _ResidualBlock
from fastflow.nn.coupling import AffineCoupling
from fastflow.nn.diagonal_normal import DiagonalNormal
from fastflow.nn.factor_out import FactorOut
from fastflow.nn.fused import _is_map, _plain
from fastflow.ops.channel_map import ChannelMap
from fastflow.ops.class_walk import Coupling, Plan, Segment
from fastflow.ops.factor_out import factored_channels
from fastflow.ops.residual_coupling import MOST_FEATURES_CUDA
from fastflow.ops.scale_map import settings_of


def obstacle(layers: Iterable[nn.Module], shape: Sequence[int], contexts: Tensor) -> str:
    """Why there is no plan of these layers for vectors like contexts [K, E]; "" where there is one."""
    if len(shape) != 1:
        return f"the flow is of samples of shape {tuple(shape)}, expected vectors"
    features, coupled = shape[0], False
    for index, layer in enumerate(layers):
        why = ""
        if type(layer) is AffineCoupling:
            why, coupled = _obstacle(layer, features, contexts), True
        elif type(layer) is FactorOut:
            why, features = "" if coupled else "comes before the first coupling", features - factored_channels(features)
        elif not _is_map(layer):
            why = "is no map of the features, no coupling and no FactorOut, or has a hook or a forward of its own"
        if not why and not _plain(layer):
            why = "has a hook or a forward of its own"
        if why:
            return f"layer {index} ({type(layer).__name__}) {why}"
    return "" if coupled else "no layer depends on the class"


def class_plan(layers: Iterable[nn.Module], features: int, contexts: Tensor, base: Callable[[Tensor], Tensor]) -> Plan:
    """The plan of layers without obstacle. base is as in `flow_class_scores`; one that is `DiagonalNormal.log_prob`
    becomes a part of the plan."""
    dtype, pieces, width = contexts.dtype, [_Piece()], features
    # Autocast is for the products a pair; these are a few a call.
    with torch.autocast(contexts.device.type, enabled=False):
        for layer in layers:
            if type(layer) is FactorOut:
                pieces[-1].leaving = factored_channels(width)
                width -= pieces[-1].leaving
                pieces.append(_Piece())
            elif type(layer) is AffineCoupling:
                boundary = _boundary(layer, width)
                if len(pieces[-1].couplings) == 2 or pieces[-1].boundary not in (0, boundary):
                    pieces.append(_Piece())
                pieces[-1].add(layer, boundary, width, contexts)
            else:
                if pieces[-1].couplings:
                    pieces.append(_Piece())
                pieces[-1].maps.append(layer)
        if not (pieces[-1].couplings or pieces[-1].maps):
            pieces.pop()
        (scales, own), tensors = _of_base(base, features, contexts), []
        for piece in pieces:
            if piece.maps:
                mapped = reduce(ChannelMap.then, (layer.channel_map(inverse=False) for layer in piece.maps))
                own = own + mapped.log_abs_det
                # Not held in float64: without autograd the next one takes its memory.
                tensors += [None if each is None else each.to(dtype) for each in (mapped.matrix, *mapped[2:])]
            tensors += piece.operands
    layout = tuple(Segment(bool(piece.maps), piece.boundary, tuple(piece.couplings), piece.leaving) for piece in pieces)
    return Plan(layout, tensors, scales, own)


class _Piece:
    """A segment in the making."""

    def __init__(self) -> None:
        self.maps: list[nn.Module] = []
        self.boundary = self.leaving = 0
        self.couplings: list[Coupling] = []
        self.operands: list[Tensor] = []

    def add(self, layer: AffineCoupling, boundary: int, width: int, contexts: Tensor) -> None:
        net, scale_map, passive = layer.conditioner, layer.scale_map, layer.split.passive_channels(width)
        table = net.input.bias.expand(contexts.shape[0], -1).contiguous()
        if net.context_features:
            table = F.linear(contexts, net.input.weight[:, passive:], net.input.bias)
        weights = [net.input.weight[:, :passive], *_inner(net), net.norm.shift, net.norm.log_scale.exp(),
                   net.output.weight, net.output.bias]
        settings = settings_of(scale_map)
        self.boundary = boundary
        self.couplings.append(Coupling(layer.split.active == "first", len(weights), settings))
        self.operands += [table, *weights]


def _boundary(layer: AffineCoupling, width: int) -> int:
    active = layer.split.active_slice(width)
    return active.stop if active.start == 0 else active.start


def _inner(net: ResidualMLP) -> list[Tensor]:
    return [each for block in net.blocks
            for each in (block.first.weight, block.first.bias, block.second.weight, block.second.bias)]


def _inside(net: ResidualMLP) -> Iterator[tuple[nn.Module, type]]:
    """The modules that its forward calls, and what they are expected to be."""
    yield from ((net, ResidualMLP), (net.input, nn.Linear), (net.norm, ActNorm), (net.output, nn.Linear))
    for block in net.blocks:
        yield block, _ResidualBlock
        yield from ((block.first, nn.Linear), (block.second, nn.Linear), (block.dropout, nn.Dropout))


def _obstacle(layer: AffineCoupling, width: int, contexts: Tensor) -> str:
    """Why a coupling cannot be a `residual_coupling`, or ""."""
    net, split, scale_map = layer.conditioner, layer.split, layer.scale_map
    if split.layout != "halves" or not split.passive_channels(width):
        return f"has the split {split}, expected halves"
    if scale_map.kind == "additive" or layer.gain is not None or layer.packing != "scale_shift":
        return "has no scale, a learned gain, or another packing than scale_shift"
    if type(net) is not ResidualMLP:
        return f"has a {type(net).__name__} as conditioner, expected a ResidualMLP"
    for module, kind in _inside(net):
        if type(module) is not kind or not _plain(module):
            return f"has a conditioner with a {type(module).__name__}, expected a {kind.__name__} without hooks"
        if kind is nn.Dropout and module.training and module.p > 0:
            return "has a conditioner whose dropout is active"
    context_features = contexts.shape[1] if layer.conditional else 0
    passive, active = split.passive_channels(width), split.active_channels(width)
    hidden = net.norm.channels
    expected = [(hidden, passive + context_features), (hidden,), (2 * active, hidden), (2 * active,), (hidden,),
                (hidden,), *[(hidden, hidden), (hidden,)] * (2 * len(net.blocks))]
    found = [net.input.weight, net.input.bias, net.output.weight, net.output.bias, net.norm.shift, net.norm.log_scale,
             *_inner(net)]
    if net.context_features != context_features or expected != [
            None if each is None else tuple(each.shape) for each in found]:
        return "has a conditioner of other sizes than the halves and the classes' vectors"
    if contexts.is_cuda and max(passive, active, hidden) > MOST_FEATURES_CUDA:
        return f"has a half or a hidden layer of more than {MOST_FEATURES_CUDA} features, the most of the CUDA kernels"
    if any(each.dtype != contexts.dtype or each.device != contexts.device for each in found):
        return f"has a conditioner whose parameters are not {contexts.dtype} on {contexts.device} like contexts"
    return ""


def _of_base(base: Callable[[Tensor], Tensor], features: int, contexts: Tensor) -> tuple[Tensor | None, Tensor]:
    """(scales, what is left of the log-density) where base is that of a DiagonalNormal, or (None, 0)."""
    owner = getattr(base, "__self__", None)
    if getattr(base, "__func__", None) is not DiagonalNormal.log_prob or owner.features != features:
        return None, contexts.new_zeros((), dtype=torch.float64)
    scales = contexts.new_ones(features) if owner.rho is None else F.softplus(owner.rho).to(contexts.dtype)
    return scales, -scales.double().log().sum() - 0.5 * math.log(2 * math.pi) * features
