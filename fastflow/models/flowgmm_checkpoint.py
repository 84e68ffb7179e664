"""Reading checkpoints of the public FlowGMM code, izmailovpavel/flowgmm (branch `public`).

Its state_dict names a coupling by its place in nested sequences (`body.2.0.module1.` of images, `body.3.` of vectors)
and keeps weight norm as `weight_g` and `weight_v`. This file finds the couplings, which are ours in the same order, and
copies the tensors over; squeezes and splits of channels hold none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from os import PathLike

from torch import Tensor, nn

from fastflow.models.reference_checkpoint import Entry, fill, into, is_state_dict, load_file
from fastflow.models.trunks import real_nvp_trunk, tabular_trunk
from fastflow.nn import AffineCoupling, FlowSequential, WeightNormResNet

OP = "FlowGMM.from_reference"


def read_flowgmm(path: str | PathLike) -> tuple[dict[str, Tensor], Tensor]:
    """(state_dict, means [K, D]) of an image checkpoint `<epoch>.pt` of the public code, for `FlowGMM.from_reference`.

    No code in the file is run. Raises FileNotFoundError, or ValueError if the file is no such checkpoint.
    """
    held = load_file("read_flowgmm", path, "<epoch>.pt")
    if not isinstance(held, Mapping) or not is_state_dict(held.get("net")) or not isinstance(held.get("means"), Tensor):
        raise ValueError(f"read_flowgmm: {path} holds {type(held).__name__}, expected a mapping with 'net', a "
                         "state_dict, and 'means', a tensor")
    return dict(held["net"]), held["means"].detach()


def normalized(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict without the prefix that DataParallel puts before its names."""
    return {name.removeprefix("module."): value for name, value in state_dict.items()}


def build_trunk(state: Mapping[str, Tensor], means: Tensor) -> tuple[FlowSequential, int]:
    """(trunk, grey levels) that names and shapes imply."""
    couplings = _couplings(state)
    if not couplings:
        raise ValueError(f"{OP}: state_dict has no couplings body.*.rescale.weight_g, expected a RealNVP, "
                         "RealNVPMNIST or RealNVPTabular")
    first, last = couplings[0], couplings[-1]
    if f"{first}.st_net.in_norm.weight" not in state:
        hidden, features = _shape(state, f"{first}.st_net.0.weight", 2)
        linears = sum(bool(re.fullmatch(rf"{re.escape(first)}\.st_net\.\d+\.weight", name)) for name in state)
        return tabular_trunk(features, couplings=len(couplings), hidden=hidden, layers=linears - 2), 1
    channels, = _shape(state, f"{first}.st_net.in_norm.weight", 1)
    hidden, wide = (_shape(state, f"{each}.st_net.in_skip.conv.weight_g", 4)[0] for each in (first, last))
    pixels = means.shape[-1] // channels
    scales, left = divmod(len(couplings) + 2, 6)  # six couplings a scale, four at the last
    if left or math.isqrt(pixels) ** 2 * channels != means.shape[-1]:
        raise ValueError(f"{OP}: state_dict has {len(couplings)} couplings and {channels} channels, means "
                         f"{tuple(means.shape)}, expected 4, 10, 16, ... couplings and a square image")
    blocks = sum(bool(re.fullmatch(rf"{re.escape(first)}\.st_net\.skips\.\d+\.conv\.bias", name)) for name in state)
    image = channels, math.isqrt(pixels), math.isqrt(pixels)
    return real_nvp_trunk(image, scales=scales, hidden=hidden, blocks=blocks, doubling=wide > hidden), 256


def load(trunk: FlowSequential, state: Mapping[str, Tensor]) -> None:
    """Copies each tensor of the state_dict to its place; raises ValueError, before any copy, if they do not fit."""
    ours = [layer for layer in trunk.layers if isinstance(layer, AffineCoupling)]
    entries = {name: entry for prefix, coupling in zip(_couplings(state), ours, strict=True)
               for name, entry in _coupling_entries(prefix, coupling)}
    fill(OP, entries, state)


def _couplings(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the couplings, in their order."""
    matches = [re.fullmatch(r"(body\.(\d+)(?:\.(\d+)\.module1)?)\.rescale\.weight_g", name) for name in state]
    return [match[1] for match in sorted((m for m in matches if m), key=lambda m: (int(m[2]), int(m[3] or 0)))]


def _coupling_entries(prefix: str, coupling: AffineCoupling) -> Iterator[tuple[str, Entry]]:
    net, gain, image = coupling.conditioner, coupling.gain, isinstance(coupling.conditioner, WeightNormResNet)
    shape = (len(gain), 1, 1) if image else (len(gain),)
    yield f"{prefix}.rescale.weight_g", into(gain, shape)
    # A gain is g v / |v| there, of a single number v: g with the sign of v.
    yield f"{prefix}.rescale.weight_v", Entry(shape, lambda _, value: gain.mul_(value.sign().view_as(gain)))
    if image:
        yield from _net_entries(f"{prefix}.st_net", net)
        return
    for place, layer in enumerate(net):
        if isinstance(layer, nn.Linear):
            yield from ((f"{prefix}.st_net.{place}.{name}", into(value)) for name, value in layer.named_parameters())


def _net_entries(prefix: str, net: WeightNormResNet) -> Iterator[tuple[str, Entry]]:
    places = {"in_norm": net.in_norm, "in_conv.conv": net.input, "in_skip.conv": net.skips[0],
              "out_norm": net.out_norm, "out_conv.conv": net.output}
    for n, (block, skip) in enumerate(zip(net.blocks, net.skips[1:], strict=True)):
        places |= {f"blocks.{n}.in_norm": block.first_norm, f"blocks.{n}.in_conv.conv": block.first,
                   f"blocks.{n}.out_norm": block.second_norm, f"blocks.{n}.out_conv.conv": block.second,
                   f"skips.{n}.conv": skip}
    named = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for place, layer in places.items():
        for name, value in layer.state_dict(keep_vars=True).items():
            yield f"{prefix}.{place}.{named.get(name, name)}", into(value)


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state or state[name].dim() != dimensions:
        found = f"of shape {tuple(state[name].shape)}" if name in state else "missing"
        raise ValueError(f"{OP}: {name} is {found}, expected a tensor of {dimensions} dimensions")
    return tuple(state[name].shape)
