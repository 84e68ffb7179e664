"""normflows: models, and GlowBlock, which call their layers one after another.

Here log-determinants are summed out of place, which vmap can, and, where normflows sums in float32, in float64 if the
layers do.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fastflow.fusion.layer import Arithmetic, Layer, anything
from fastflow.ops._checks import COMPUTE_DTYPE


class Block(Arithmetic):
    """GlowBlock."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return _through(self.flows, z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return _through([flow.inverse for flow in reversed(self.flows)], z)


class Flow(Arithmetic):
    """NormalizingFlow."""

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return _through(self.flows, z)

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _through([flow.inverse for flow in reversed(self.flows)], x)

    def log_prob(self, x: Tensor) -> Tensor:
        z, log_q = self.inverse_and_log_det(x)
        return _added(log_q, self.q0.log_prob(z))

    def forward_kld(self, x: Tensor) -> Tensor:
        return -self.log_prob(x).mean()


class ConditionalFlow(Arithmetic):
    """ConditionalNormalizingFlow."""

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _through(self.flows, z, context=context)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _through([flow.inverse for flow in reversed(self.flows)], x, context=context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        z, log_q = self.inverse_and_log_det(x, context)
        return _added(log_q, self.q0.log_prob(z, context=context))

    def forward_kld(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return -self.log_prob(x, context).mean()


class ClassFlow(Arithmetic):
    """ClassCondFlow."""

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        z, log_q = _through([flow.inverse for flow in reversed(self.flows)], x)
        return _added(log_q, self.q0.log_prob(z, y))

    def forward_kld(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.log_prob(x, y).mean()


class MultiscaleFlow(Arithmetic):
    """MultiscaleFlow."""

    def forward_and_log_det(self, z: list[Tensor]) -> tuple[Tensor, Tensor]:
        x, log_det = z[0], _zeros(z[0])
        for level, flows in enumerate(self.flows):
            if level:
                x, own = self.merges[level - 1]([x, z[level]])
                log_det = _added(log_det, own)
            x, log_det = _through(flows, x, log_det)
        return (x, log_det) if self.transform is None else _through([self.transform], x, log_det)

    def inverse_and_log_det(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        z, log_det = [], _zeros(x)
        if self.transform is not None:
            x, log_det = _through([self.transform.inverse], x, log_det)
        for level in reversed(range(len(self.q0))):
            x, log_det = _through([flow.inverse for flow in reversed(self.flows[level])], x, log_det)
            if level:
                (x, left), own = self.merges[level - 1].inverse(x)
                log_det = _added(log_det, own)
            z.append(left if level else x)
        return z[::-1], log_det

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        z, log_q = self.inverse_and_log_det(x)
        for base, latent in zip(reversed(self.q0), reversed(z), strict=True):
            log_q = _added(log_q, base.log_prob(latent, y) if self.class_cond else base.log_prob(latent))
        return log_q


def _through(steps: Iterable[Callable], z: Tensor, log_det: Tensor | None = None, **context: Tensor | None,
             ) -> tuple[Tensor, Tensor]:
    log_det = _zeros(z) if log_det is None else log_det
    for step in steps:
        z, own = step(z, **context)
        log_det = _added(log_det, own)
    return z, log_det


def _zeros(z: Tensor) -> Tensor:
    return z.new_zeros(z.shape[0], dtype=COMPUTE_DTYPE.get(z.dtype, torch.get_default_dtype()))


def _added(log_det: Tensor, own: Tensor | float) -> Tensor:
    """The sum [B]; raises RuntimeError, as an addition in place does, for what has another shape."""
    if not isinstance(own, Tensor) and own == 0:
        return log_det
    total = log_det + own
    if total.shape != log_det.shape:
        raise RuntimeError(f"a layer's log_det has shape {tuple(own.shape)}, expected {tuple(log_det.shape)} or ()")
    return total


_CODE = ("forward_and_log_det", "inverse_and_log_det", "forward_kld", "log_prob")
_SERVED = "sums of log_det, out of place and in float64 where the layers are"
LAYERS = (
    Layer("normflows", "GlowBlock", Block, ("forward", "inverse"), ("929c47350176",), anything, _SERVED),
    Layer("normflows", "NormalizingFlow", Flow, _CODE, ("4d06ebbebade",), anything, _SERVED),
    Layer("normflows", "ConditionalNormalizingFlow", ConditionalFlow, _CODE, ("5ae18d838d3c",), anything, _SERVED),
    Layer("normflows", "ClassCondFlow", ClassFlow, ("forward_kld", "log_prob"), ("301411b8178c",), anything, _SERVED),
    Layer("normflows", "MultiscaleFlow", MultiscaleFlow, _CODE, ("c911a1a61c96", "331ae3f8ad25"), anything, _SERVED),
)
