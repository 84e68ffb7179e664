"""What every model with classes has in common: log p(x, y = k) = log_base + G[k], and all that follows from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastflow.nn import Dequantize
from fastflow.ops._checks import check_float, check_labels


class ClassFlow(nn.Module):
    """A density of data x and classes y, given by `class_scores`. Units are nats; x is [B, ...].

    A subclass sets `features` (D, the dimensions of one x), `classes` (K), `levels` (grey levels of an image, 1 for
    continuous data) and `dequantize` (None for continuous data), and defines `class_scores`. Densities of images are
    those of the dequantised image in [0, 1]^D.
    K = 1 is a model without classes, a density of x alone: G [B, 1] is then a part of log p(x).

    x       integer grey levels 0 .. levels - 1, or floats in [0, 1], taken as already dequantised; with 1 level any
            floats, taken as they are
    noise   of x's shape, uniform in [0, 1), for integer x; None: 1/2, deterministic. See `ops.uniform_noise`
    """

    features: int
    classes: int
    levels: int = 1
    dequantize: Dequantize | None

    def class_scores(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(log_base [B], G [B, K]) with log p(x, y = k) = log_base + G[k]; G contains log p(y = k)."""
        raise NotImplementedError(f"{type(self).__name__} defines no class_scores")

    def log_joint(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, K] log p(x, y = k)."""
        log_base, scores = self.class_scores(x, noise)
        return log_base[:, None] + scores

    def log_prob(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B] log p(x), the classes summed out."""
        log_base, scores = self.class_scores(x, noise)
        return log_base + torch.logsumexp(scores, dim=1)

    def predict_proba(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, K] p(y = k | x)."""
        return torch.softmax(self.class_scores(x, noise)[1], dim=1)

    def predict(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B] the most probable class."""
        return self.class_scores(x, noise)[1].argmax(dim=1)

    def bits_per_dim(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B] log2(levels) - log2 p(x) / D: bits for one dimension of the quantised x."""
        return (math.log(self.levels) - self.log_prob(x, noise) / self.features) / math.log(2)

    @torch.no_grad()
    def interpolate(self, first: Tensor, second: Tensor, steps: int = 8) -> Tensor:
        """[steps, B, *shape]: data on straight lines of the trunk's latents from first to second, ends included.

        first, second  [B, *shape], as in `class_scores`; images come as [0, 1]. Of models with a `trunk`, which is used
        as in evaluation. Raises FloatingPointError where the inverse overflows.
        """
        if first.shape != second.shape:
            raise ValueError(f"{type(self).__name__}.interpolate: second has shape {tuple(second.shape)}, expected "
                             f"{tuple(first.shape)} like first")
        training = self.trunk.training
        self.trunk.eval()
        start, end = (self.trunk(self._continuous(x, None))[0] for x in (first, second))
        parts = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
        z = torch.lerp(start, end, parts.view(-1, *[1] * start.dim())).flatten(0, 1)
        x = self.trunk.inverse(z)[0].unflatten(0, (steps, len(first)))
        self.trunk.train(training)
        if not x.isfinite().all():
            raise FloatingPointError(f"{type(self).__name__}.interpolate: a point between left the range of {x.dtype}")
        return x if self.levels == 1 else x.clamp(0, 1)

    def _continuous(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """x as floats of the model's dtype: images dequantised, continuous data as they are."""
        dtype = next(self.parameters()).dtype
        if self.dequantize is not None:
            return self.dequantize(x, noise, dtype=dtype)
        check_float(type(self).__name__, "x", x)
        if noise is not None:
            raise ValueError(f"{type(self).__name__}: noise is given for continuous data (levels 1), expected None")
        return x.to(dtype)

    def _labels(self, name: str, y: int | Tensor, rows: int) -> Tensor:
        return labels_of(f"{type(self).__name__}.{name}", y, rows, self)


def labels_of(op: str, y: int | Tensor, rows: int, model: nn.Module) -> Tensor:
    """y, one label or labels [rows], as a label int64 for each row, on the device of a model with `classes`."""
    device = next(model.parameters()).device
    if isinstance(y, int):
        y = torch.full((rows,), y, device=device)
    check_labels(op, "y", y, rows, model.classes, unlabelled=False)
    return y.to(device).long()
