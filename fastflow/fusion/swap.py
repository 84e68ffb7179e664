"""`fuse`, `unfuse` and the table of layers that they know."""

import importlib.metadata
import logging
import warnings
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from torch import nn

from fastflow.fusion import freia, nflows, normflows, zuko
from fastflow.fusion.layer import Layer, arithmetic_of, digest, is_customised, is_fused, original_class, swap, swap_back
from fastflow.fusion.mlp import Mlp, is_mlp

log = logging.getLogger("fastflow")
SCOPES = ("layer",)
LAYERS: tuple[Layer, ...] = (*nflows.LAYERS, *normflows.LAYERS, *freia.LAYERS, *zuko.LAYERS)
TESTED = {"nflows": "0.14", "normflows": "1.7.3", "FrEIA": "0.2", "zuko": "1.6.0"}

# The base class of each library's layers, and those of its layers that only call others.
_BASES = {"nflows": "Transform", "normflows": "Flow", "FrEIA": "InvertibleModule", "zuko": "LazyTransform"}
_CONTAINERS = ("CompositeTransform", "InverseTransform", "Composite", "Reverse", "SequenceINN", "GraphINN",
               "ReversibleGraphNet", "ReversibleSequential", "LazyInverse")


class Found(NamedTuple):
    """A layer of a flow: its name in the model, its class, and why it stays as it is; empty where it is fused."""

    name: str
    kind: str
    reason: str


def fuse(module: nn.Module, scope: str = "layer") -> nn.Module:
    """Swaps the arithmetic of the known layers of an nflows, normflows, FrEIA or zuko model in place; returns it.

    Each keeps its class (it becomes a subclass), parameters, buffers, hooks and place; what is computed is the same
    function by one kernel. So does every `nn.Sequential` of linear layers and (leaky) rectifiers, wherever it is in the
    model: a conditioner mostly. Unknown layers, and known ones with settings or code that no formula here is for, stay
    as they are. The logger "fastflow" tells of both (level INFO); a release of a library that is not tested is warned
    of once. Twice is harmless; `unfuse` undoes it. `supported_layers` prints what is known.

    scope   "layer": every layer by itself

    Raises TypeError or ValueError for what is no module, is compiled already, has parameters on the meta device, or
    was fused and then changed so that a fused layer is no longer what it was.
    """
    _check("fuse", module)
    if scope not in SCOPES:
        raise ValueError(f"fuse: scope is {scope!r}, expected {' or '.join(map(repr, SCOPES))}")
    found = []
    for name, layer in _layers(module):
        if is_fused(layer):
            _check_fused(name, layer)
            reason = ""
        else:
            known, reason = _recognised(layer)
            if known is not None:
                swap(layer, known.arithmetic)
        found.append(Found(name or "the model itself", original_class(layer).__name__, reason))
    for each in module.modules():
        if is_mlp(each):
            swap(each, Mlp)
    _report(found, sum(isinstance(each, Mlp) for each in module.modules()))
    return module


def unfuse(module: nn.Module) -> nn.Module:
    """Gives every fused layer of the model its own class back, in place; returns the model.

    Raises TypeError or ValueError for what is no module or is compiled.
    """
    _check("unfuse", module)
    for layer in module.modules():
        if is_fused(layer):
            swap_back(layer)
    return module


def supported_layers() -> str:
    """A table of the layers that `fuse` knows: library, class, and what of its options is served."""
    rows = [("library", "layer", "served"), *((each.library, each.name, each.covers) for each in LAYERS),
            ("torch", "Sequential", "conditioners of linear layers with ReLU or LeakyReLU, on the CPU")]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{library:{widths[0]}s}  {name:{widths[1]}s}  {covers}" for library, name, covers in rows)


def survey(module: nn.Module) -> list[Found]:
    """What `fuse` would find, changing nothing; of a fused model, what it has found."""
    return [Found(name or "the model itself", original_class(layer).__name__,
                  "" if is_fused(layer) else _recognised(layer)[1]) for name, layer in _layers(module)]


def _check(op: str, module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{op}: module is {type(module).__name__}, expected an nn.Module")
    for name, each in module.named_modules():
        if hasattr(each, "_orig_mod"):
            raise ValueError(f"{op}: {name or 'module'} is compiled, expected the model as it was: {op} it first, then "
                             "torch.compile it")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if op == "fuse" and tensor.is_meta:
            raise ValueError(f"{op}: {name} is on the meta device, expected values: load or initialise the model first")


def _check_fused(name: str, layer: nn.Module) -> None:
    arithmetic, kind = arithmetic_of(layer), original_class(layer).__name__
    known = next(each for each in LAYERS if each.arithmetic is arithmetic and each.name == kind)
    if reason := _obstacle(layer, known):
        raise ValueError(f"fuse: {name or 'module'} ({kind}) is fused and was changed since: {reason}. Expected it as "
                         "it was fused: unfuse the model, and fuse it again")


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer of a flow in the model, outermost first, without the parts whose work a fused layer does itself."""
    replaced: set[str] = set()
    for name, layer in module.named_modules():
        if name in replaced or isinstance(layer, Mlp):
            continue
        if is_fused(layer) or _namesakes(type(layer)) or _library(layer):
            yield name, layer
        if is_fused(layer):
            replaced |= {f"{name}.{part}" if name else part for part in arithmetic_of(layer).replaces}


def _namesakes(cls: type) -> list[Layer]:
    """The known kinds of layer of the class's name, without those of other libraries than the class's own."""
    home = cls.__module__.partition(".")[0]
    return [each for each in LAYERS if each.name == cls.__name__ and (home not in TESTED or home == each.library)]


def _library(layer: nn.Module) -> str:
    """The library whose layer an unknown module is; empty for a container, a conditioner or anything else."""
    if type(layer).__name__ in _CONTAINERS:
        return ""
    for cls in type(layer).__mro__:
        library = cls.__module__.partition(".")[0]
        if cls.__name__ == _BASES.get(library):
            return library
    return ""


def _recognised(layer: nn.Module) -> tuple[Layer | None, str]:
    """(what it is, "") or (None, why it cannot be fused)."""
    named = _namesakes(type(layer))
    if not named:
        of = next((cls.__name__ for cls in type(layer).__mro__ if _namesakes(cls)), "")
        return None, f"it is a subclass of {of}" if of else "fastflow has no kernel for it"
    if type(layer).__module__.partition(".")[0] == named[0].library:
        _warn_of_untested(named[0].library)
    known = [each for each in named if digest(type(layer), each.methods) in each.digests]
    if not known:
        return None, f"its code is not that of a known release of {named[0].library}"
    reasons = [_obstacle(layer, each) for each in known]
    if "" in reasons:
        return known[reasons.index("")], ""
    return None, reasons[0]


def _obstacle(layer: nn.Module, known: Layer) -> str:
    """Why a layer with the code of a known kind cannot be fused; empty where it can."""
    changed = sorted(set(known.methods) & set(vars(layer)))
    if changed:
        return f"its {changed[0]} was replaced on the instance"
    if reason := known.refuses(layer):
        return reason
    for name in known.arithmetic.replaces:
        part = layer.get_submodule(name)
        if is_customised(part):
            return f"{name} has a hook or a forward of its own, which would not be called"
    return ""


@cache
def _warn_of_untested(library: str) -> None:
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return
    if version != TESTED[library]:
        warnings.warn(f"fuse: {library} is {version}, tested with {TESTED[library]}: layers whose code is another are "
                      "left as they are", stacklevel=4)


def _report(found: list[Found], conditioners: int) -> None:
    fused = [each for each in found if not each.reason]
    log.info("fuse: %d of %d layers of the flow are fused, and %d conditioners", len(fused), len(found), conditioners)
    for each in found:
        log.info("fuse: %s (%s) %s", each.name, each.kind, f"is left: {each.reason}" if each.reason else "is fused")
