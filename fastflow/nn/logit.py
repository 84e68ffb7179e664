"""The logit layer at the door of an image flow."""

from torch import Tensor

from fastflow.nn.bijection import Bijection
from fastflow.ops.logit import logit


class Logit(Bijection):
    """z = logit((1 - alpha) x + alpha / 2): data in [0, 1] to the real line. x [B, C, *spatial].

    alpha 0.05 is SCNF's, 0.1 RealNVP's and FlowGMM's. Source: Dinh et al. 2017, section 4.1.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return logit(x, alpha=self.alpha, log_det=log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return logit(z, alpha=self.alpha, log_det=log_det, inverse=True)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
