"""nflows: the multi-scale container, also for an empty batch, and without the NumPy that torch.compile stops at."""

import math

import torch
from torch import Tensor

from fastflow.fusion.layer import Arithmetic, Layer, anything
from fastflow.fusion.nflows.permutations import zeros


class Multiscale(Arithmetic):
    """MultiscaleCompositeTransform: after every level but the last one half leaves; z is all that left, flattened."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self._split_dim >= inputs.dim():
            raise ValueError("No split_dim in inputs.")
        self._check_levels()
        *others, last = self._transforms
        x, leaving, log_det = inputs, [], zeros(inputs)
        for level, shape in zip(others, self._output_shapes, strict=False):
            x, own = level(x, context)
            out, x = x.chunk(2, self._split_dim)
            assert out.shape[1:] == shape
            leaving.append(out.flatten(1))
            log_det = log_det + own
        x, own = last(x, context)
        return torch.cat([*leaving, x.flatten(1)], -1), log_det + own

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 2:
            raise ValueError("Expecting NxD inputs")
        self._check_levels()
        parts = inputs.split([math.prod(shape) for shape in self._output_shapes], 1)
        x, log_det = None, zeros(inputs)
        for level, shape, part in zip(*map(reversed, (self._transforms, self._output_shapes, parts)), strict=True):
            part = part.reshape(len(inputs), *shape)
            x, own = level.inverse(part if x is None else torch.cat([part, x], self._split_dim), context)
            log_det = log_det + own
        return x, log_det

    def _check_levels(self) -> None:
        if self._num_transforms != len(self._transforms):
            raise RuntimeError(f"Expecting exactly {self._num_transforms} transform(s) to be added.")


LAYERS = (Layer("nflows", "MultiscaleCompositeTransform", Multiscale, ("forward", "inverse"), ("69277adb29cd",),
                anything, "any levels, any split_dim"),)
