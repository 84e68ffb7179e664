"""A flow's walk through its layers: one pass over memory before each conditioner and one after it.

Normalisations, mixes and permutations that follow each other are one affine map of the channels: one pass, which reads
D numbers a sample and writes D. Around couplings of halves the state is a pair of tensors: the map before writes the
halves apart, the conditioner reads one, the coupling reads the other (D/2) with scale and shift (D) and writes it
anew (D/2), and the map after reads both. A step of Glow so moves 4 D; layer by layer it would be 7 D, and a coupling
that did the next step's map in its own pass would make it 3 D. The halves are joined where a layer wants them whole. A
map reads the pixels of a squeeze before it where they lie, and writes those of an un-squeeze after it to where they
belong.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastflow.nn.bijection import Bijection
from fastflow.nn.coupling import AffineCoupling
from fastflow.nn.factor_out import FactorOut
from fastflow.nn.squeeze import Squeeze
from fastflow.ops._checks import check_device
from fastflow.ops.channel_map import ChannelMap
from fastflow.ops.channel_mix import MOST_CHANNELS, Parts, map_channels
from fastflow.ops.factor_out import factored_channels
from fastflow.ops.packing import has_channels_last
from fastflow.ops.squeeze import ORDERS


def walk(layers: Sequence[Bijection | FactorOut], x: Tensor, context: Tensor | None, log_det: Tensor,
         left: list[Tensor], inverse: bool = False) -> tuple[Parts, Tensor]:
    """(state, log_det) after `layers`, in the order of the walk; a FactorOut adds to `left`, its inverse pops it."""
    state, index = x, 0
    while index < len(layers):
        layer, channels = layers[index], _channels(state)
        squeezing = max(0, _squeezing(layers, index, state, inverse))
        after, mapped = index + bool(squeezing), 4 * channels if squeezing else channels
        maps = _maps(layers, after, mapped)
        after += len(maps)
        if maps:
            split = _wanted(layers, after, mapped, inverse)
            if not (squeezing or split):
                squeezing = min(0, _squeezing(layers, after, state, inverse))
                after += bool(squeezing)
            if after == index + 1 and isinstance(state, Tensor) and not split:
                state, log_det = (layer.inverse if inverse else layer)(state, context, log_det)
            else:
                state = whole(state) if squeezing > 0 else state
                state, log_det = map_channels(state, _composed(maps, state, inverse), log_det, split, squeezing)
            index = after
            continue
        index += 1
        if split := _present(layers, index - 1, state) or _wanted(layers, index - 1, channels, inverse):
            state, log_det = layer.couple_halves(_halves(state, split), context, log_det, inverse)
        elif isinstance(layer, FactorOut):
            state = _factor_out_inverse(layer, state, left, layers[index:]) if inverse else (
                _factor_out(layer, state, left))
        else:
            state, log_det = (layer.inverse if inverse else layer)(whole(state), context, log_det)
    return state, log_det


def whole(state: Parts) -> Tensor:
    """The state as one tensor."""
    return torch.cat(state, 1) if isinstance(state, tuple) else state


def _channels(state: Parts) -> int:
    return sum(part.shape[1] for part in state) if isinstance(state, tuple) else state.shape[1]


def _plain(layer: nn.Module) -> bool:
    """Whether calling the layer does what its class says, and nothing more."""
    return not (layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks
                or "forward" in vars(layer) or "inverse" in vars(layer) or _has_any_global_hook())


def _is_map(layer: nn.Module) -> bool:
    """Whether the layer is, by its own class, one affine map of the channels."""
    return "channel_map" in vars(type(layer)) and _plain(layer)


def _maps(layers: Sequence, index: int, channels: int) -> list:
    """The maps of the channels that follow each other from `index` on."""
    end = index
    while channels <= MOST_CHANNELS and end < len(layers) and _is_map(layers[end]):
        end += 1
    return list(layers[index:end])


def _squeezing(layers: Sequence, index: int, state: Parts, inverse: bool) -> int:
    """How the map of the channels beside it may do what the layer at `index` does: `squeezing` of `map_channels`."""
    layer = layers[index] if index < len(layers) else None
    if type(layer) is not Squeeze or not _plain(layer) or layer.factor != 2 or layer.interleaved:
        return 0
    if has_channels_last(state[0] if isinstance(state, tuple) else state):  # the kernels read their pixels whole
        return 0
    order = ORDERS.index(layer.order) + 1
    return order if layer.undo == inverse else -order


def _composed(maps: list, state: Parts, inverse: bool) -> ChannelMap:
    composed = reduce(ChannelMap.then, (layer.channel_map(inverse) for layer in maps))
    x = state[0] if isinstance(state, tuple) else state
    check_device("FlowSequential", x, **{f"{type(maps[0]).__name__}'s parameter": composed.matrix})
    return composed


def _boundary(layers: Sequence, index: int, channels: int) -> int:
    """How many channels the first half has for the coupling of halves at `index`; 0 if there is none."""
    if index >= len(layers) or type(layers[index]) is not AffineCoupling or layers[index].split.layout != "halves":
        return 0
    active = layers[index].split.active_slice(channels)
    return (active.stop if active.start == 0 else active.start) if _plain(layers[index]) else 0


def _wanted(layers: Sequence, index: int, channels: int, inverse: bool) -> int:
    """Where the layer at `index` wants the state to be split; 0: nowhere. A coupling of halves does if what follows
    takes them as they are: a whole result it writes as fast by itself."""
    boundary = _boundary(layers, index, channels) if channels <= MOST_CHANNELS else 0
    if not boundary or index + 1 >= len(layers):
        return 0
    following = layers[index + 1]
    if isinstance(following, FactorOut):
        taken = not inverse and _plain(following) and factored_channels(channels) == boundary
    else:
        taken = _is_map(following) or _boundary(layers, index + 1, channels) == boundary
    return boundary if taken else 0


def _present(layers: Sequence, index: int, state: Parts) -> int:
    """Where the state is split, if the layer at `index` wants it there."""
    split = state[0].shape[1] if isinstance(state, tuple) else 0
    return split if split and _boundary(layers, index, _channels(state)) == split else 0


def _halves(state: Parts, boundary: int) -> tuple[Tensor, Tensor]:
    if isinstance(state, tuple) and state[0].shape[1] == boundary:
        return state
    state = whole(state)
    return state[:, :boundary], state[:, boundary:]


def _factor_out(layer: FactorOut, state: Parts, left: list[Tensor]) -> Tensor:
    if isinstance(state, tuple) and _plain(layer) and state[0].shape[1] == factored_channels(_channels(state)):
        aux, rest = state
        left.append(aux.flatten(1))
        return rest
    aux, rest = layer(whole(state))
    left.append(aux)
    return rest


def _factor_out_inverse(layer: FactorOut, state: Parts, left: list[Tensor], following: Sequence) -> Parts:
    aux, rest = left.pop(), whole(state)
    leaving = aux.shape[1] * rest.shape[1] // max(1, rest[0].numel()) if len(rest) else 0
    channels = leaving + rest.shape[1]
    takes_halves = leaving and _plain(layer) and (
        _maps(following, 0, channels) or _wanted(following, 0, channels, inverse=True) == leaving)
    return (aux.reshape(-1, leaving, *rest.shape[2:]), rest) if takes_halves else layer.inverse(aux, rest)
