"""Composition of invertible layers, multi-scale where some of them factor out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from fastflow.nn.bijection import Bijection
from fastflow.nn.class_plan import class_plan, obstacle
from fastflow.nn.coupling import AffineCoupling
from fastflow.nn.factor_out import FactorOut
from fastflow.nn.fused import _plain, walk, whole
from fastflow.nn.reversible import Segment
from fastflow.ops._checks import check_float, start_log_det
from fastflow.ops._define import under_transform
from fastflow.ops.class_walk import Plan


class FlowSequential(Bijection):
    """Layers one after the other; with `FactorOut` among them a multi-scale flow.

    layers       bijections and `FactorOut`s, in the order data to latent
    shape        of one sample, without the batch: (C, H, W), (D,), ...; every layer is checked against it here
    reversible   training by `forward` keeps the output and the input of every `keep_every` layers instead of what each
                 layer would keep; backward recomputes the rest through the inverses, one conditioner evaluation more a
                 layer. x must be float32 or float64: under autocast only conditioners compute in 16 bits. Conditioners
                 are modules, all of whose parameters are theirs; gradients of gradients are refused.
    keep_every   layers between two kept states; keeping more costs memory and makes the recomputed inputs more exact
    drift_bound  the relative error of a recomputed state above which its layers keep their inputs from then on, after
                 one warning that names the least exact one; that backward pass already counts on the kept inputs.
                 Looking at it waits for the device once every `keep_every` layers.
    checkpoint   "conditioner": backward recomputes the inside of each coupling's conditioner from its input

    x [B, *shape]. Without FactorOut z has the last layer's shape. With it z is [B, D], D = prod(shape): the latents in
    the order of leaving, then what was left, z = [z_aux | z_f]; `aux_features` is the width of z_aux. Shapes are fixed
    here, so `inverse` may be called first. Raises ValueError naming the first layer that does not fit.
    """

    def __init__(self, layers: Iterable[nn.Module], shape: Sequence[int], *, reversible: bool = False,
                 keep_every: int = 16, drift_bound: float = 1e-3, checkpoint: str | None = None) -> None:
        super().__init__()
        if keep_every < 1:
            raise ValueError(f"FlowSequential: keep_every is {keep_every}, expected at least 1")
        if checkpoint not in (None, "conditioner"):
            raise ValueError(f"FlowSequential: checkpoint is {checkpoint!r}, expected None or 'conditioner'")
        if reversible and checkpoint:
            raise ValueError("FlowSequential: reversible and checkpoint are both given, expected at most one of them")
        self.layers = nn.ModuleList(layers)
        self.shape = tuple(shape)
        self.leaving: list[int] = []
        current = self.shape
        for index, layer in enumerate(self.layers):
            name = f"layer {index} ({type(layer).__name__})"
            if not isinstance(layer, Bijection | FactorOut):
                raise TypeError(f"FlowSequential: {name} is no Bijection and no FactorOut")
            try:
                after = layer.output_shape(current)
            except ValueError as error:
                raise ValueError(f"FlowSequential: {name} does not fit samples of shape {current}: {error}") from None
            if isinstance(layer, FactorOut):
                self.leaving.append(math.prod(current) - math.prod(after))
            current = after
        self.last_shape = current
        self.aux_features = sum(self.leaving)
        couplings = [module for module in self.modules() if isinstance(module, AffineCoupling)]
        for coupling in couplings:
            coupling.checkpoint |= checkpoint == "conditioner"
        self.reversible, self.keep_every, self.drift_bound = reversible, keep_every, drift_bound
        self._inexact: set[int] = set()
        for coupling in couplings:
            if reversible and not isinstance(coupling.conditioner, nn.Module):
                raise TypeError(f"FlowSequential: reversible needs conditioners that are modules, got "
                                f"{type(coupling.conditioner).__name__}, whose parameters cannot be seen")

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, self.shape)
        log_det = start_log_det("FlowSequential", x, log_det)
        left: list[Tensor] = []
        state, log_det = walk(self._recorded(x, context, log_det), x, context, log_det, left)
        if not left:
            return whole(state), log_det
        parts = state if isinstance(state, tuple) else (state,)
        return torch.cat([*left, *(part.flatten(1) for part in parts)], dim=1), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, self.output_shape(self.shape))
        log_det = start_log_det("FlowSequential", z, log_det)
        left = []
        if self.leaving:
            *left, z = z.split([*self.leaving, math.prod(self.last_shape)], dim=1)
            z = z.reshape(z.shape[0], *self.last_shape)
        state, log_det = walk(list(reversed(self.layers)), z, context, log_det, left, inverse=True)
        return whole(state), log_det

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if tuple(shape) != self.shape:
            raise ValueError(f"it was built for samples of shape {self.shape}")
        return (math.prod(self.shape),) if self.leaving else self.last_shape

    def class_obstacle(self, contexts: Tensor) -> str:
        """Why `class_plan` cannot be made; "" where it can."""
        if type(self) is not FlowSequential or not _plain(self):
            return f"the flow is a {type(self).__name__} with a hook or a forward of its own"
        return obstacle(self.layers, self.shape, contexts)

    def class_plan(self, contexts: Tensor, base: Callable[[Tensor], Tensor]) -> Plan:
        """How all pairs of a row and a class go through the flow at once; contexts and base as in `flow_class_scores`.

        The layers are read, not called.
        """
        return class_plan(self.layers, self.shape[0], contexts, base)

    def _recorded(self, x: Tensor, context: Tensor | None, log_det: Tensor) -> Sequence:
        """What forward goes through: the layers; in reversible training, segments of them and FactorOuts."""
        layers = list(self.layers)
        if not self.reversible or not torch.is_grad_enabled() or under_transform():
            return layers
        inputs = (x, context, log_det, *self.parameters())
        if not any(each is not None and each.requires_grad for each in inputs):
            return layers
        if x.dtype in (torch.bfloat16, torch.float16):
            raise TypeError(f"FlowSequential: reversible and x has dtype {x.dtype}, expected float32: states are "
                            "recomputed through inverses; 16-bit arithmetic belongs in conditioners, by autocast")
        parts: list[Segment | FactorOut] = []
        for index, layer in enumerate(layers):
            if isinstance(layer, FactorOut):
                parts.append(layer)
            elif parts and isinstance(parts[-1], Segment) and len(parts[-1].layers) < self.keep_every:
                parts[-1].layers.append(layer)
            else:
                parts.append(Segment([layer], index, self.drift_bound, self._inexact))
        return parts

    def _check(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        check_float("FlowSequential", name, value)
        if value.dim() < 2 or tuple(value.shape[1:]) != shape:
            expected = ", ".join(map(str, ("B", *shape)))
            raise ValueError(f"FlowSequential: {name} has shape {tuple(value.shape)}, expected ({expected})")
