"""The scale maps of affine couplings: from a conditioner's raw output s to the scale c > 0, log c and its slope."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The index in this tuple is the `kind` of the schemas and of every kernel.
KINDS = ("additive", "exp", "sigmoid", "softplus", "tanh", "clamp_atan", "clamp_tanh", "clamp_sigmoid", "soft_clip",
         "inverse_sigmoid")


@dataclass(frozen=True)
class ScaleMap:
    """How the raw scale s becomes the scale c > 0, and whether the shift is added before c multiplies.

    additive       c = 1 (no scale)
    exp            log c = s
    sigmoid        c = sigmoid(s + bias) + eps
    softplus       c = softplus(s + bias) + eps, eps > 0
    tanh           log c = gain tanh(s), gain learned: a tensor [n_active] or a scalar tensor
    clamp_atan     log c = clamp 0.636 atan(s)                    (FrEIA)
    clamp_tanh     log c = clamp tanh(s)                          (FrEIA)
    clamp_sigmoid  log c = clamp 2 (sigmoid(s) - 1/2)             (FrEIA)
    soft_clip      log c = s / (1 + |s| / clamp)                  (zuko, clamp = -ln slope)
    inverse_sigmoid  c = 1 / sigmoid(s + bias)                    (normflows)

    Raises ValueError for an unknown kind, a number that is not finite, a negative eps, a clamp that is not positive, or
    a setting the kind ignores.
    """

    kind: str = "exp"
    bias: float = 0.0
    eps: float = 0.0
    clamp: float = 1.0
    gain: Tensor | None = None
    shift_first: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"ScaleMap: kind is {self.kind!r}, expected one of {', '.join(KINDS)}")
        for name in ("bias", "eps", "clamp"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"ScaleMap: {name} is {getattr(self, name)}, expected a finite number")
        for name, kinds in (("bias", ("sigmoid", "softplus", "inverse_sigmoid")), ("eps", ("sigmoid", "softplus"))):
            if getattr(self, name) and self.kind not in kinds:
                raise ValueError(f"ScaleMap: {name} has no meaning for kind {self.kind!r}, leave it at 0")
        if self.eps < 0 or (self.kind == "softplus" and self.eps == 0):
            raise ValueError(f"ScaleMap: eps is {self.eps} for kind {self.kind!r}, expected a number "
                             f"{'> 0, or the scale underflows to 0' if self.kind == 'softplus' else '>= 0'}")
        if self.clamp != 1.0 and self.kind not in ("clamp_atan", "clamp_tanh", "clamp_sigmoid", "soft_clip"):
            raise ValueError(f"ScaleMap: clamp has no meaning for kind {self.kind!r}, leave it at 1")
        if not self.clamp > 0:
            raise ValueError(f"ScaleMap: clamp is {self.clamp}, expected a number > 0")
        if self.gain is not None and self.kind != "tanh":
            raise ValueError(f"ScaleMap: gain has no meaning for kind {self.kind!r}, leave it at None")
        object.__setattr__(self, "index", KINDS.index(self.kind))
        settings = self.index, float(self.bias), float(self.eps), float(self.clamp), bool(self.shift_first)
        object.__setattr__(self, "settings", settings)
        object.__setattr__(self, "key", " ".join(map(repr, settings)))


def settings_of(scale_map: ScaleMap) -> tuple[int, float, float, float, bool]:
    """(kind, bias, eps, clamp, shift_first), as the schemas have them.

    Under `torch.compile(dynamic=True)` floats of an object would be variables of the graph, which Dynamo loses between
    two calls. A string is a constant that it guards.
    """
    if not torch.compiler.is_compiling():
        return scale_map.settings
    kind, bias, eps, clamp, shift_first = scale_map.key.split()
    return int(kind), float(bias), float(eps), float(clamp), shift_first == "True"


def _per_channel(gain: Tensor, like: Tensor) -> Tensor:
    return gain.view(-1, *[1] * (like.dim() - 2))


def scale_of(s: Tensor, gain: Tensor | None, kind: int, bias: float, eps: float, clamp: float) -> tuple[Tensor, Tensor]:
    """(c, log c) of the raw scale s, both in the form that is stable for every s; `kind` indexes KINDS."""
    name = KINDS[kind]
    if name == "sigmoid":
        c = torch.sigmoid(s + bias) + eps
        return c, (torch.log(c) if eps > 0 else F.logsigmoid(s + bias))
    if name == "softplus":
        c = F.softplus(s + bias) + eps
        return c, torch.log(c)
    if name == "inverse_sigmoid":
        return 1 + torch.exp(-(s + bias)), F.softplus(-(s + bias))
    if name == "exp":
        log_c = s
    elif name == "tanh":
        log_c = torch.tanh(s) if gain is None else _per_channel(gain, s) * torch.tanh(s)
    elif name == "clamp_atan":
        log_c = clamp * 0.636 * torch.atan(s)
    elif name == "clamp_tanh":
        log_c = clamp * torch.tanh(s)
    elif name == "clamp_sigmoid":
        log_c = clamp * torch.tanh(0.5 * s)
    else:
        log_c = s / (1 + s.abs() / clamp)
    return torch.exp(log_c), log_c


def log_scale_slope(s: Tensor, gain: Tensor | None, kind: int, bias: float, eps: float, clamp: float) -> Tensor:
    """d log c / ds, with the arguments of `scale_of`."""
    name = KINDS[kind]
    if name == "exp":
        return torch.ones_like(s)
    if name == "sigmoid":
        rest = torch.sigmoid(-(s + bias))
        sigmoid = torch.sigmoid(s + bias)
        return rest * sigmoid / (sigmoid + eps) if eps > 0 else rest
    if name == "inverse_sigmoid":
        return -torch.sigmoid(-(s + bias))
    if name == "softplus":
        return torch.sigmoid(s + bias) / (F.softplus(s + bias) + eps)
    if name == "clamp_atan":
        return clamp * 0.636 / (1 + s * s)
    if name == "soft_clip":
        return (1 + s.abs() / clamp) ** -2
    if name == "clamp_sigmoid":
        return 0.5 * clamp * (1 - torch.tanh(0.5 * s) ** 2)
    slope = 1 - torch.tanh(s) ** 2
    if name == "clamp_tanh":
        return clamp * slope
    return slope if gain is None else _per_channel(gain, s) * slope
