"""`fuse`, `unfuse` and the table of layers that they know."""

import logging
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from fastflow.fusion import freia, nflows, normflows, zuko
from fastflow.fusion.layer import Layer, arithmetic_of, digest, is_fused, original_class, swap, swap_back

log = logging.getLogger("fastflow")
SCOPES = ("layer",)
LAYERS: tuple[Layer, ...] = (*nflows.LAYERS, *normflows.LAYERS, *freia.LAYERS, *zuko.LAYERS)
_LIBRARIES = ("nflows", "normflows", "FrEIA", "zuko")


class Found(NamedTuple):
    """A layer of a flow: its name in the model, its class, and why it stays as it is; empty where it is fused."""

    name: str
    kind: str
    reason: str


def fuse(module: nn.Module, scope: str = "layer") -> nn.Module:
    """Swaps the arithmetic of the known layers of an nflows, normflows, FrEIA or zuko model in place; returns it.

    Each keeps its class (it becomes a subclass), parameters, buffers, hooks and place; what is computed is the same
    function by one kernel. Unknown layers, and known ones with settings or code that no formula here is for, stay as
    they are. The logger "fastflow" tells of both (level INFO). Twice is harmless; `unfuse` undoes it.

    scope   "layer": every layer by itself

    Raises TypeError or ValueError for what is no module, is compiled already, or has parameters on the meta device.
    """
    _check("fuse", module)
    if scope not in SCOPES:
        raise ValueError(f"fuse: scope is {scope!r}, expected {' or '.join(map(repr, SCOPES))}")
    found = []
    for name, layer in _layers(module):
        reason = ""
        if not is_fused(layer):
            known, reason = _recognised(layer)
            if known is not None:
                swap(layer, known.arithmetic)
        found.append(Found(name or "the model itself", original_class(layer).__name__, reason))
    _report(found)
    return module


def unfuse(module: nn.Module) -> nn.Module:
    """Gives every fused layer of the model its own class back, in place; returns the model. Raises as `fuse` does."""
    _check("unfuse", module)
    for layer in module.modules():
        if is_fused(layer):
            swap_back(layer)
    return module


def supported_layers() -> str:
    """A table of the layers that `fuse` knows: library, class, and what of its options is served."""
    rows = [("library", "layer", "served")] + [(each.library, each.name, each.covers) for each in LAYERS]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{library:{widths[0]}s}  {name:{widths[1]}s}  {covers}" for library, name, covers in rows)


def survey(module: nn.Module) -> list[Found]:
    """What `fuse` would find, changing nothing."""
    return [Found(name, original_class(layer).__name__, "" if is_fused(layer) else _recognised(layer)[1])
            for name, layer in _layers(module)]


def _check(op: str, module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{op}: module is {type(module).__name__}, expected an nn.Module")
    for name, each in module.named_modules():
        if hasattr(each, "_orig_mod"):
            raise ValueError(f"{op}: {name or 'module'} is compiled, expected the model as it was: {op} it first, then "
                             "torch.compile it")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f"{op}: {name} is on the meta device, expected values: load or initialise the model first")


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer of a flow in the model, outermost first, without what a fused layer does itself."""
    done = ()
    for name, layer in module.named_modules():
        if done and name.startswith(done):
            continue
        known = is_fused(layer) or any(each.name == type(layer).__name__ for each in LAYERS)
        if not known and not _is_flow(layer):
            continue
        yield name, layer
        if is_fused(layer):
            done = (*done, *(f"{name}.{child}." if name else f"{child}." for child in arithmetic_of(layer).replaces))


def _is_flow(layer: nn.Module) -> bool:
    """Whether an unknown module is a peer's bijection: a leaf of the flow, not a container or a conditioner."""
    return any(cls.__module__.partition(".")[0] in _LIBRARIES and cls.__name__ in _BIJECTIONS
               for cls in type(layer).__mro__) and type(layer).__name__ not in _CONTAINERS


# The base classes of the libraries' layers, and those of their layers that only call others.
_BIJECTIONS = ("Transform", "Flow", "InvertibleModule", "LazyTransform")
_CONTAINERS = ("CompositeTransform", "InverseTransform", "Composite", "SequenceINN", "GraphINN", "GlowBlock",
               "LazyComposedTransform", "LazyInverse")


def _recognised(layer: nn.Module) -> tuple[Layer | None, str]:
    """(what it is, "") or (None, why it cannot be fused)."""
    named = [each for each in LAYERS if each.name == type(layer).__name__]
    if not named:
        return None, "fastflow has no kernel for it"
    reason = ""
    for each in named:
        if digest(type(layer), each.methods) in each.digests:
            reason = each.refuses(layer)
            if not reason:
                return each, ""
    return None, reason or f"its code is not that of a known {named[0].library} release"


def _report(found: list[Found]) -> None:
    fused = [each for each in found if not each.reason]
    log.info("fuse: %d of %d layers of the flow are fused", len(fused), len(found))
    for each in found:
        log.info("fuse: %s (%s) %s", each.name, each.kind, f"is left: {each.reason}" if each.reason else "is fused")
