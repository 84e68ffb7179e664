"""The squeeze layer between the scales of an image flow, or between its steps."""

from torch import Tensor

from fastflow.nn.bijection import Bijection
from fastflow.ops._checks import start_log_det
from fastflow.ops.squeeze import check_settings, multiples, squeeze


class Squeeze(Bijection):
    """[B, C, H, W] to [B, r^2 C, H / r, W / r], a permutation with log-determinant 0.

    order        "position" is SCNF's, "channel" that of RealNVP's code and FlowGMM; as in `ops.squeeze`
    factor       r
    interleaved  whether the r x r pixels that become one are far from each other instead of neighbours
    undo         the layer un-squeezes: its forward is the inverse of the same layer without `undo`

    Source: Dinh et al. 2017, section 3.6; factors, interleaving and un-squeezing as in TzK, Livne and Fleet 2018.
    """

    def __init__(self, order: str = "position", factor: int = 2, interleaved: bool = False, undo: bool = False) -> None:
        super().__init__()
        check_settings("Squeeze", order, factor)
        self.order, self.factor, self.interleaved, self.undo = order, factor, interleaved, undo

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._squeeze(x, self.undo), start_log_det("squeeze", x, log_det)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._squeeze(z, not self.undo), start_log_det("squeeze", z, log_det)

    def _squeeze(self, x: Tensor, inverse: bool) -> Tensor:
        return squeeze(x, order=self.order, factor=self.factor, interleaved=self.interleaved, inverse=inverse)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        factor = self.factor
        if self.undo:
            if len(shape) != 3 or shape[0] % factor**2:
                raise ValueError(f"it takes (C, H, W) with C a multiple of {factor**2}")
            return shape[0] // factor**2, shape[1] * factor, shape[2] * factor
        if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
            raise ValueError(f"it takes (C, H, W) with {multiples(factor)}")
        return shape[0] * factor**2, shape[1] // factor, shape[2] // factor

    def extra_repr(self) -> str:
        return f"order={self.order!r}, factor={self.factor}, interleaved={self.interleaved}, undo={self.undo}"
