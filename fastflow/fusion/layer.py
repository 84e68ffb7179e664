"""A fused layer is the user's own layer whose class has become a subclass of itself that overrides the arithmetic.

So `isinstance`, parameters, buffers, hooks, names and everything that the subclass does not override stay. The subclass
is made when it is needed, of the layer's class and an `Arithmetic`: no peer library is imported, and a copy of one that
lies elsewhere is served like the original.

What a layer computes is recognised by the code of its methods, never by a version: releases of one number differ in
their formulas.
"""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from torch import Tensor, nn


class Arithmetic:
    """What a fused layer overrides; a base class in front of the layer's own.

    `prepare` looks at the layer's buffers and settings once, when it is fused and whenever a state_dict was loaded, and
    stores what it found with `keep`.
    """

    replaces: tuple[str, ...] = ()  # submodules whose calls the fused layer leaves out

    def prepare(self) -> None:
        """Does nothing unless overridden."""

    def _get_name(self) -> str:
        return original_class(self).__name__

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.prepare()

    def __reduce_ex__(self, protocol):
        _, _, *state = super().__reduce_ex__(2)
        return _empty, (original_class(self), arithmetic_of(self)), *state


class Layer(NamedTuple):
    """A kind of layer that can be fused.

    library, name  of its class, which a copy of the library may have too
    arithmetic     what takes the place of its methods
    methods        whose code decides what it computes
    digests        of that code, as `digest` finds them: one for each release that computes something else
    refuses        why this layer of the class cannot be fused; empty where it can
    covers         what of its options is served, in words, for the table
    """

    library: str
    name: str
    arithmetic: type[Arithmetic]
    methods: tuple[str, ...]
    digests: tuple[str, ...]
    refuses: Callable[[nn.Module], str]
    covers: str


def anything(layer: nn.Module) -> str:
    """The `refuses` of a kind of layer that has no option."""
    return ""


_PREFIX = "_fused_"


def keep(layer: nn.Module, name: str, value: object) -> None:
    """Stores what `prepare` found as `_fused_<name>`, which unfusing removes.

    A tensor becomes a buffer, which follows the layer to its device and is not part of the state_dict.
    """
    name = _PREFIX + name
    if isinstance(value, Tensor):
        layer.__dict__.pop(name, None)
        layer.register_buffer(name, value, persistent=False)
    else:
        layer._buffers.pop(name, None)
        layer.__dict__[name] = value


def is_fused(layer: nn.Module) -> bool:
    return isinstance(layer, Arithmetic)


def original_class(layer: nn.Module) -> type[nn.Module]:
    """The class that the layer had before it was fused, or has."""
    return type(layer).__bases__[1] if is_fused(layer) else type(layer)


def arithmetic_of(layer: nn.Module) -> type[Arithmetic]:
    """What a fused layer overrides."""
    return type(layer).__bases__[0]


def swap(layer: nn.Module, arithmetic: type[Arithmetic]) -> None:
    """Fuses one layer in place."""
    layer.__class__ = _fused_class(type(layer), arithmetic)
    layer.prepare()


def swap_back(layer: nn.Module) -> None:
    """Undoes `swap`."""
    for store in (layer.__dict__, layer._buffers):
        for name in [name for name in store if name.startswith(_PREFIX)]:
            del store[name]
            layer._non_persistent_buffers_set.discard(name)
    layer.__class__ = original_class(layer)


@cache
def _fused_class(original: type[nn.Module], arithmetic: type[Arithmetic]) -> type[nn.Module]:
    names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    return type(original.__name__, (arithmetic, original), names)


def _empty(original: type[nn.Module], arithmetic: type[Arithmetic]) -> nn.Module:
    """A fused layer without its state, for pickle and deepcopy."""
    return object.__new__(_fused_class(original, arithmetic))


@cache
def digest(cls: type, methods: tuple[str, ...]) -> str:
    """12 hex digits of the code of methods, wherever a base class defines them; comments, docstrings and layout do not
    count, nor does it count that a layer is fused. Empty where there is no source."""
    if issubclass(cls, Arithmetic):
        cls = cls.__bases__[1]
    parts = []
    for name in methods:
        function = inspect.getattr_static(cls, name, None)
        function = getattr(function, "fget", None) or getattr(function, "__func__", function)
        if function is None:
            return ""
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError, SyntaxError):
            return ""
        body = getattr(tree.body[0], "body", [])  # an assigned lambda has none
        if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body.pop(0)
        parts.append(ast.unparse(tree))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def is_customised(module: nn.Module) -> bool:
    """Whether a call of the module itself does something else than its class's forward."""
    own = module.__dict__
    return bool("forward" in own or own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"]
                or own["_backward_pre_hooks"] or own.get("_compiled_call_impl"))
