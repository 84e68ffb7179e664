"""The symmetric-logarithm activation layer."""

from torch import Tensor

from fastflow.nn.bijection import Bijection
from fastflow.ops.sym_log import sym_log


class SymLog(Bijection):
    """z = sign(x) log(1 + |x|), an invertible activation. x [B, C, *spatial].

    Every layer shrinks far values: put a learned scale, such as `ActNorm`, before the next one. Source: TzK (Livne and
    Fleet 2018, arXiv 1811.01837).
    """

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return sym_log(x, log_det=log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return sym_log(z, log_det=log_det, inverse=True)
