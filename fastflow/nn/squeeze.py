"""The squeeze layer between the scales of an image flow."""

from torch import Tensor

from fastflow.nn.bijection import Bijection
from fastflow.ops._checks import start_log_det
from fastflow.ops.squeeze import ORDERS, squeeze


class Squeeze(Bijection):
    """[B, C, H, W] to [B, 4 C, H / 2, W / 2], a permutation with log-determinant 0; `order` as in `ops.squeeze`.

    "position" is SCNF's order, "channel" that of RealNVP's code and FlowGMM. Source: Dinh et al. 2017, section 3.6.
    """

    def __init__(self, order: str = "position") -> None:
        super().__init__()
        if order not in ORDERS:
            raise ValueError(f"Squeeze: order is {order!r}, expected one of {', '.join(ORDERS)}")
        self.order = order

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return squeeze(x, order=self.order), start_log_det("squeeze", x, log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return squeeze(z, order=self.order, inverse=True), start_log_det("squeeze", z, log_det)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != 3 or shape[1] % 2 or shape[2] % 2:
            raise ValueError("it takes (C, H, W) with even height and width")
        return 4 * shape[0], shape[1] // 2, shape[2] // 2

    def extra_repr(self) -> str:
        return f"order={self.order!r}"
