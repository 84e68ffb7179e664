"""The affine coupling layer: a conditioner reads the passive part of x, and scales and shifts the active part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fastflow.nn.bijection import Bijection, gradients, leaf
from fastflow.nn.reversible import checkpointed
from fastflow.nn.split import Split
from fastflow.ops.affine_coupling import affine_coupling, affine_coupling_packed
from fastflow.ops.packing import PACKINGS
from fastflow.ops.scale_map import ScaleMap

_HALVES = Split.halves()
# Bounded above, so that no stack of layers overflows, and below by eps, so that no inverse layer stretches more than
# 1000-fold, within float16. Adding the shift first keeps the relative round-trip error of a layer at rounding level for
# any scale. bias 2 starts a conditioner whose output is zero near the identity (c = 0.88).
_SIGMOID = ScaleMap("sigmoid", bias=2.0, eps=1e-3, shift_first=True)


class AffineCoupling(Bijection):
    """z = (x + t) c or x c + t on the active part of x, whose scale c and shift t depend on the passive part only.

    conditioner   module or callable: conditioner(passive) or, when context is given, conditioner(passive, context).
                  Returns one tensor [B, 2 n, *spatial] with n = split.active_channels(C), packed as `packing` says, or
                  the pair (scale, shift), each [B, n, *spatial]; for the additive map the shift alone. Any float dtype:
                  under autocast it may run in bfloat16, the coupling itself is float32 (float64 for float64 x).
    split         which part is active; see `Split`
    scale_map     how the raw scale becomes c. A gain (kind "tanh") becomes a learned parameter of the module; a given
                  nn.Parameter is taken as it is.
    packing       where scale and shift lie in dim 1 of the conditioner's tensor: "scale_shift" [s | t] (Glow, FrEIA),
                  "shift_scale" [t | s] (nflows), or interleaved, "scale_shift_interleaved" s t s t ... or
                  "shift_scale_interleaved" t s t s ... (normflows, zuko). Read in place, and given one gradient.
    conditional   False: the conditioner is called with the passive part alone, also in a flow that is given a context

    x and z [B, C, *spatial], log_det [B] float32 (float64 for float64 x). Raises ValueError or TypeError when x or what
    the conditioner returns has another shape. The mask of a mask split is part of the state_dict.
    Source: Dinh et al. 2017, "Density estimation using Real NVP", equations 4 to 9.
    """

    def __init__(self, conditioner: Callable[..., Tensor | tuple[Tensor, Tensor]], split: Split = _HALVES,
                 scale_map: ScaleMap = _SIGMOID, *, packing: str = "scale_shift", conditional: bool = True) -> None:
        super().__init__()
        if not callable(conditioner):
            raise TypeError(f"AffineCoupling: conditioner is {type(conditioner).__name__}, expected an nn.Module")
        if not isinstance(split, Split):
            raise TypeError(f"AffineCoupling: split is {type(split).__name__}, expected a Split like Split.halves()")
        if not isinstance(scale_map, ScaleMap):
            raise TypeError(f"AffineCoupling: scale_map is {type(scale_map).__name__}, expected a ScaleMap")
        if packing not in PACKINGS:
            raise ValueError(f"AffineCoupling: packing is {packing!r}, expected one of {', '.join(PACKINGS)}")
        self.conditioner = conditioner
        self.split = split
        self.packing = packing
        self.conditional = conditional
        self.checkpoint = False  # whether backward recomputes the conditioner; FlowSequential(checkpoint=...) sets it
        gain = scale_map.gain
        self.scale_map = scale_map if gain is None else dataclasses.replace(scale_map, gain=None)
        if gain is not None and not isinstance(gain, nn.Parameter):
            gain = nn.Parameter(gain.detach().clone())
        self.register_parameter("gain", gain)
        mask = split.passive_mask
        self.register_buffer("mask", None if mask is None else mask.detach().clone())

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(z, log_det): data to latent; adds log|det dz/dx| to the running log_det."""
        return self._couple(x, context, log_det, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x, log_det): latent to data; adds log|det dx/dz| to the running log_det."""
        return self._couple(z, context, log_det, inverse=True)

    def backward_from_output(self, z, context, grad_z, grad_log_det, parameters, replay):
        """As in `Bijection`. The passive part of x is z's, so the conditioner runs once."""
        passive, context = leaf(self.split.passive_part(z, self.mask)), leaf(context)
        replay()
        with torch.enable_grad():
            made = self._condition(passive, context)
        with torch.no_grad():
            x = leaf(self._transform(z, self._active(z), made, None, inverse=True)[0])
        with torch.enable_grad():
            outputs = self._transform(x, self._active(x), made, None, inverse=False)
        inputs = (x, passive, context, *parameters)
        grad_x, grad_passive, grad_context, *grads = gradients(outputs, (grad_z, grad_log_det), inputs)
        if self.scale_map.kind == "additive":
            grad_x = grad_x.clone()  # it is grad_z
        if grad_passive is not None and self.mask is not None:
            grad_x += torch.where(self.mask, grad_passive, 0.0)
        elif grad_passive is not None:
            self.split.passive_part(grad_x).add_(grad_passive)
        return x.detach(), grad_x, grad_context, grads

    def couple_halves(
        self, halves: tuple[Tensor, Tensor], context: Tensor | None, log_det: Tensor | None, inverse: bool
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """((first, second), log_det) for x or z in two tensors, the halves of a split in halves."""
        first, second = halves
        active_first = self.split.active == "first"
        active, passive = (first, second) if active_first else (second, first)
        active, log_det = self._transform(active, None, self._condition(passive, context), log_det, inverse)
        return (active, passive) if active_first else (passive, active), log_det

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """`shape` itself; raises ValueError if the split does not fit samples of that shape."""
        self.split.check(shape)
        return shape

    def _couple(
        self, x: Tensor, context: Tensor | None, log_det: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        if x.dim() < 2:
            raise ValueError(f"AffineCoupling: x has shape {tuple(x.shape)}, expected [B, C, *spatial]")
        made = self._condition(self.split.passive_part(x, self.mask), context)
        return self._transform(x, self._active(x), made, log_det, inverse)

    def _active(self, x: Tensor) -> slice | None:
        return self.split.active_slice(x.shape[1])

    def _transform(
        self, x: Tensor, active: slice | None, made: Tensor | tuple[Tensor, Tensor], log_det: Tensor | None,
        inverse: bool,
    ) -> tuple[Tensor, Tensor]:
        self._check_made(made, x, active)
        scale_map = self.scale_map if self.gain is None else dataclasses.replace(self.scale_map, gain=self.gain)
        settings = {"scale_map": scale_map, "active": active, "mask": self.mask, "log_det": log_det, "inverse": inverse}
        if isinstance(made, tuple):
            return affine_coupling(x, *made, **settings)
        if scale_map.kind == "additive":
            return affine_coupling(x, None, made, **settings)
        return affine_coupling_packed(x, made, packing=self.packing, **settings)

    def _condition(self, passive: Tensor, context: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        conditioner = partial(checkpointed, self.conditioner) if self.checkpoint else self.conditioner
        if context is None or not self.conditional:
            return conditioner(passive)
        try:
            return conditioner(passive, context)
        except (TypeError, ValueError) as error:
            error.add_note(f"AffineCoupling: conditioner {type(self.conditioner).__name__} was called with (passive, "
                           "context); if it reads no context, build the coupling with conditional=False")
            raise

    def _check_made(self, made: Tensor | tuple[Tensor, Tensor], x: Tensor, active: slice | None) -> None:
        count = x.shape[1] if active is None else len(range(*active.indices(x.shape[1])))
        each = (x.shape[0], count, *x.shape[2:])
        additive = self.scale_map.kind == "additive"
        if isinstance(made, tuple) and not additive:
            if [getattr(part, "shape", None) for part in made] != [each, each]:
                raise ValueError(f"AffineCoupling: conditioner returned {_describe(made)}, expected the pair "
                                 f"(scale, shift), each of shape {each}")
            return
        expected = each if additive else (each[0], 2 * count, *each[2:])
        if getattr(made, "shape", None) != expected:
            what = "the shift" if additive else f"{self.packing},"
            raise ValueError(f"AffineCoupling: conditioner returned {_describe(made)}, expected {what} of shape "
                             f"{expected} for the {count} active of {x.shape[1]} channels of x {tuple(x.shape)}")

    def extra_repr(self) -> str:
        settings = [repr(self.scale_map.kind)]
        for field in dataclasses.fields(self.scale_map)[1:]:
            value = getattr(self.scale_map, field.name)
            if value != field.default:
                settings.append(f"{field.name}={value!r}")
        conditional = "" if self.conditional else ", conditional=False"
        return f"{self.split}, ScaleMap({', '.join(settings)}), packing={self.packing!r}{conditional}"


def _describe(made: object) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(_describe(part) for part in made)})"
    return f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
