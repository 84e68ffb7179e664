"""Reading checkpoints of the public SCNF code, SamsungLabs/semi-supervised-NFs.

Its state_dict names a layer by its place in the flow (`flow.modules_.12.net1.3.net.2.weight`), calls ActNorm's
parameters `logs` and `bias`, and stores masks and flags as parameters. This file describes the architecture that such
names and shapes imply, and copies the tensors over; the formulas behind them are those of our own layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from fastflow.nn import (
    ActNorm,
    AffineCoupling,
    ChannelMix,
    ConvResidualNet,
    DiagonalNormal,
    FlowSequential,
    ResidualMLP,
)

if TYPE_CHECKING:
    from fastflow.models.scnf import SCNF


def read_reference(path: str | PathLike) -> dict[str, Tensor]:
    """The state_dict in a `model.torch` of the public code, for `SCNF.from_reference`; no code in the file is run.

    Raises FileNotFoundError, or ValueError if the file is no checkpoint.
    """
    state = load_file("read_reference", path, "model.torch")
    if not is_state_dict(state):
        raise ValueError(f"read_reference: {path} holds {type(state).__name__}, expected a state_dict of tensors")
    return dict(state)


def load_file(op: str, path: str | PathLike, expected: str) -> object:
    """What a checkpoint file of public code holds; no code in it is run. `expected`: the file's name there."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{op}: there is no file {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails anywhere; torch's advice is to run the code in it
        raise ValueError(f"{op}: {path} is no checkpoint of tensors ({type(error).__name__}), expected an "
                         f"undamaged {expected} of the public code") from None


def is_state_dict(state: object) -> bool:
    return isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())


def normalized(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict without the components that DataParallel puts into its names."""
    return {re.sub(r"(^|\.)module\.", r"\1", name): value for name, value in state_dict.items()}


def describe(state: Mapping[str, Tensor]) -> tuple[dict, dict]:
    """The arguments of `conv_trunk` and of `conditional_flow` (and classes) that names and shapes imply."""
    masks = _layers(state, r"flow\.modules_\.(\d+)\.mask")
    norms = _layers(state, r"prior\.flow\.modules_\.(\d+)\.logs")
    if not masks or not norms:
        raise ValueError("SCNF.from_reference: state_dict has no masked couplings in flow. or no norms in prior.flow., "
                         "expected the trunk mnist-masked and the head cond-flow")
    boards = [_shape(state, name, 4)[1:] for name in masks.values()]
    first, second = next(iter(masks)), next((i for i, b in zip(masks, boards, strict=True) if b != boards[0]), None)
    couplings = _layers(state, r"flow\.modules_\.(\d+)\.net1\.1\.weight")
    trunk = {
        "image": boards[0],
        "scales": len(set(boards)),
        "masked_steps": boards.count(boards[0]),
        "channel_steps": sum(second is None or index < second for index in couplings),
        "hidden": _shape(state, f"flow.modules_.{first}.net.1.weight", 4)[0],
        "blocks": len(_layers(state, rf"flow\.modules_\.{first}\.net\.(\d+)\.net\.2\.weight")),
    }
    widths = [_shape(state, name, 1)[0] for name in norms.values()]
    classes, context_features = _shape(state, "prior.flow.embeddings.weight", 2)
    coupling = f"prior.flow.modules_.{next(iter(norms)) + 2}.net1"
    head = {
        "features": widths[0],
        "classes": classes,
        "context_features": context_features,
        "levels": len(set(widths)),
        "steps": widths.count(widths[0]),
        "hidden": _shape(state, f"{coupling}.0.weight", 4)[0],
        "blocks": len(_layers(state, rf"{re.escape(coupling)}\.(\d+)\.net\.1\.weight")),
    }
    return trunk, head


def load(model: SCNF, state: Mapping[str, Tensor]) -> None:
    """Copies each tensor of the state_dict to its place; raises ValueError, before any copy, if they do not fit."""
    fill("SCNF.from_reference", dict(_entries(model)), state)


def fill(op: str, entries: Mapping[str, Entry], state: Mapping[str, Tensor]) -> None:
    """Gives each entry the tensor of its name; raises ValueError, before any copy, if names or shapes differ."""
    wrong = [f"{name} has shape {tuple(state[name].shape)}, expected {entry.shape}"
             for name, entry in entries.items() if name in state and tuple(state[name].shape) != entry.shape]
    problems = [_some("missing", sorted(entries.keys() - state.keys())),
                _some("unknown", sorted(state.keys() - entries.keys())), _some("of the wrong shape", wrong)]
    if any(problems):
        raise ValueError(f"{op}: state_dict does not fit the architecture it implies: "
                         f"{'; '.join(filter(None, problems))}")
    with torch.no_grad():
        for name, entry in entries.items():
            entry.copy(name, state[name])


class Entry(NamedTuple):
    """The shape of a tensor of a checkpoint, and copy(name, tensor), which puts it into our model."""

    shape: tuple[int, ...]
    copy: Callable[[str, Tensor], object]


def into(target: Tensor, shape: tuple[int, ...] | None = None) -> Entry:
    """Copies to `target`, from a tensor of another shape if given, with the same numbers in the same order."""
    shape = tuple(target.shape) if shape is None else shape
    return Entry(shape, lambda name, value: target.copy_(value.view(target.shape)))


def _equal(expected: Tensor) -> Entry:
    """A constant that our layers build themselves and the checkpoint repeats."""

    def check(name: str, value: Tensor) -> None:
        if not torch.equal(value.double(), expected.double()):
            raise ValueError(f"SCNF.from_reference: {name} is not the constant that the public code puts there")

    return Entry(tuple(expected.shape), check)


def _entries(model: SCNF) -> Iterator[tuple[str, Entry]]:
    """Every name of the public code's state_dict, with its shape and what to do with its value."""
    yield from _flow_entries("flow", model.trunk)
    yield from _flow_entries("prior.flow", model.head.flow)
    yield "prior.flow.embeddings.weight", into(model.head.embedding)
    yield from _base_entries("prior.deep_prior", model.head.base)
    yield from _base_entries("prior.shallow_prior", model.aux_base)


def _flow_entries(prefix: str, flow: FlowSequential) -> Iterator[tuple[str, Entry]]:
    layers = iter(flow.layers)
    for index, layer in enumerate(layers):
        name = f"{prefix}.modules_.{index}"
        if isinstance(layer, ActNorm):
            yield from _norm_entries(name, layer)
        elif isinstance(layer, ChannelMix):
            yield f"{name}.W", into(layer.weight)
        elif isinstance(layer, AffineCoupling) and layer.mask is not None:
            yield f"{name}.mask", _equal(layer.mask[None])
            yield from _net_entries(f"{name}.net", layer.conditioner)
        elif isinstance(layer, AffineCoupling):
            # Two of our couplings, one for each half, are one layer with two networks there.
            yield from _net_entries(f"{name}.net1", layer.conditioner)
            yield from _net_entries(f"{name}.net2", next(layers).conditioner)


def _net_entries(prefix: str, net: ConvResidualNet | ResidualMLP) -> Iterator[tuple[str, Entry]]:
    """Places in its nn.Sequential: paddings count before the convolutions of the trunk, not before the head's."""
    first, inner, last = (1, (2, 5), 3) if isinstance(net, ConvResidualNet) else (0, (1, 3), 2)
    norm = first + 1 + len(net.blocks)
    yield from _linear_entries(f"{prefix}.{first}", net.input)
    for place, block in enumerate(net.blocks, start=first + 1):
        yield from _linear_entries(f"{prefix}.{place}.net.{inner[0]}", block.first)
        yield from _linear_entries(f"{prefix}.{place}.net.{inner[1]}", block.second)
    yield from _norm_entries(f"{prefix}.{norm}", net.norm)
    yield from _linear_entries(f"{prefix}.{norm + last}", net.output)


def _linear_entries(name: str, layer: nn.Linear | nn.Conv2d) -> Iterator[tuple[str, Entry]]:
    shape = tuple(layer.weight.shape)
    yield f"{name}.weight", into(layer.weight, shape if isinstance(layer, nn.Conv2d) else (*shape, 1, 1))
    yield f"{name}.bias", into(layer.bias)


def _norm_entries(name: str, layer: ActNorm) -> Iterator[tuple[str, Entry]]:
    yield f"{name}.logs", into(layer.log_scale)
    yield f"{name}.bias", into(layer.shift)
    yield f"{name}.requires_init", Entry((1,), lambda _, value: layer.initialized.fill_(not bool(value)))


def _base_entries(name: str, base: DiagonalNormal) -> Iterator[tuple[str, Entry]]:
    yield f"{name}.logsigma", into(base.rho)
    yield f"{name}.mean", _equal(torch.zeros(base.features))


def _layers(state: Mapping[str, Tensor], pattern: str) -> dict[int, str]:
    """The names that match, by the number that the pattern captures, in its order."""
    matches = (re.fullmatch(pattern, name) for name in state)
    return dict(sorted((int(match[1]), match[0]) for match in matches if match))


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"SCNF.from_reference: state_dict has no {name}, expected the trunk mnist-masked and the head "
                         "cond-flow with full convolutions")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"SCNF.from_reference: {name} has shape {shape}, expected {dimensions} dimensions, none empty")
    return shape


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
