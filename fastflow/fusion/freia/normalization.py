"""FrEIA: ActNorm, whose two releases differ in parameters, initialisation and log_det, and elementwise scaling."""

import math

import torch
from torch import Tensor

from fastflow.fusion.freia.subnets import checked
from fastflow.fusion.layer import Arithmetic, Layer, anything, keep
from fastflow.fusion.normalization import measurable
from fastflow.ops.elementwise_affine import elementwise_affine


class ActNorm(Arithmetic):
    """ActNorm of PyPI: y = x exp(scale) + bias."""

    def forward(self, x, rev=False, jac=True):
        x = checked(self, x[0], self.dims_in[0])
        if self.init_on_next_batch and measurable(x.shape[0] * math.prod(x.shape[2:])):
            self._initialize_with_data(x)
        x, log_det = elementwise_affine(x, self.bias.flatten(), self.scale.flatten(), inverse=rev)
        return [x], log_det


class ActNormNewer(Arithmetic):
    """ActNorm of the git tree: y = (x - loc) exp(-log_scale), log_det [1]. Before the first batch both parameters are
    memory that nobody wrote."""

    def prepare(self) -> None:
        keep(self, "ready", bool(self.is_initialized))

    def forward(self, x, c=None, rev=False, jac=True):
        if c is not None:
            raise ValueError(f"{self._get_name()} is unconditional.")
        x = checked(self, x[0], self.loc.shape[1])
        pixels = math.prod(x.shape[2:])
        if not self._fused_ready:
            self._start(x, pixels)
        log_det = self.log_scale.flatten(1).sum(1) * (pixels if rev else -pixels)
        x, _ = elementwise_affine(x, self.loc.flatten(), self.log_scale.flatten(), inverse=not rev)
        return (x,), log_det

    def _start(self, x: Tensor, pixels: int) -> None:
        """Initialises from x unless that was done by hand, or x is too small: then this is the identity."""
        if not self.is_initialized:
            if not measurable(x.shape[0] * pixels):
                torch.nn.init.zeros_(self.loc)
                torch.nn.init.zeros_(self.log_scale)
                return
            self.initialize(x)
        keep(self, "ready", True)


LAYERS = (
    Layer("FrEIA", "ActNorm", ActNorm, ("forward", "_initialize_with_data"), ("e6130bbcbb47",), anything,
          "any init_data; a batch of fewer than 2 values a channel leaves it uninitialised"),
    Layer("FrEIA", "ActNorm", ActNormNewer, ("forward", "initialize", "scale"), ("b2705ab5ff6a",), anything,
          "as above"),
)
