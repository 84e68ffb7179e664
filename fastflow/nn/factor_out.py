"""The factor-out layer of a multi-scale flow."""

from torch import Tensor, nn

from fastflow.ops.factor_out import factor_out, factor_out_inverse, factored_channels


class FactorOut(nn.Module):
    """Inside a `FlowSequential`: channels [0, k) leave as latents z_aux, the others go on. k as in `ops.factor_out`.

    forward(x) -> (aux [B, k pixels], rest [B, C - k, *spatial]) and inverse(aux, rest) -> x, both with log-determinant
    0. Two outputs make it no `Bijection`; FlowSequential gathers the first ones. Source: Dinh et al. 2017, section 3.6.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return factor_out(x)

    def inverse(self, aux: Tensor, rest: Tensor) -> Tensor:
        return factor_out_inverse(aux, rest)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the rest; raises ValueError if no channel would be left."""
        return shape[0] - factored_channels(shape[0]), *shape[1:]
