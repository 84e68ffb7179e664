"""Composition of invertible layers, multi-scale where some of them factor out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fastflow.nn.bijection import Bijection
from fastflow.nn.factor_out import FactorOut
from fastflow.ops._checks import start_log_det


class FlowSequential(Bijection):
    """Layers one after the other; with `FactorOut` among them a multi-scale flow.

    layers  bijections and `FactorOut`s, in the order data to latent
    shape   of one sample, without the batch: (C, H, W), (D,), ...; every layer is checked against it here

    x [B, *shape]. Without FactorOut z has the last layer's shape. With it z is [B, D], D = prod(shape): the latents in
    the order of leaving, then what was left, z = [z_aux | z_f]; `aux_features` is the width of z_aux. Shapes are fixed
    here, so `inverse` may be called first. Raises ValueError naming the first layer that does not fit.
    """

    def __init__(self, layers: Iterable[nn.Module], shape: Sequence[int]) -> None:
        super().__init__()
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

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("x", x, self.shape)
        log_det = start_log_det("FlowSequential", x, log_det)
        left = []
        for layer in self.layers:
            if isinstance(layer, FactorOut):
                aux, x = layer(x)
                left.append(aux)
            else:
                x, log_det = layer(x, context, log_det)
        return (torch.cat([*left, x.flatten(1)], dim=1) if left else x), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check("z", z, self.output_shape(self.shape))
        log_det = start_log_det("FlowSequential", z, log_det)
        left = []
        if self.leaving:
            *left, z = z.split([*self.leaving, math.prod(self.last_shape)], dim=1)
            z = z.reshape(z.shape[0], *self.last_shape)
        for layer in reversed(self.layers):
            if isinstance(layer, FactorOut):
                z = layer.inverse(left.pop(), z)
            else:
                z, log_det = layer.inverse(z, context, log_det)
        return z, log_det

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if tuple(shape) != self.shape:
            raise ValueError(f"it was built for samples of shape {self.shape}")
        return (math.prod(self.shape),) if self.leaving else self.last_shape

    def _check(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        if value.dim() < 2 or tuple(value.shape[1:]) != shape:
            expected = ", ".join(map(str, ("B", *shape)))
            raise ValueError(f"FlowSequential: {name} has shape {tuple(value.shape)}, expected ({expected})")
