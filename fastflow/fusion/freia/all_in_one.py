"""FrEIA: AllInOneBlock, which couples, scales and shifts every channel, and permutes or rotates the channels."""

import torch
from torch import Tensor, nn

from fastflow.fusion.conditioned import networks_of
from fastflow.fusion.freia import block_node
from fastflow.fusion.freia.channels import as_permutation, mixed, permuted, reflections
from fastflow.fusion.freia.subnets import asked, checked
from fastflow.fusion.freia.volume_preserving import row_preserving
from fastflow.fusion.layer import Arithmetic, Layer, keep
from fastflow.ops._checks import compute_dtype
from fastflow.ops.act_norm import compute as scaled
from fastflow.ops.affine_coupling import compute as coupled
from fastflow.ops.scale_map import ScaleMap, settings_of


class AllInOne(Arithmetic):
    """AllInOneBlock of PyPI: [a | t] = 0.1 subnet, log c = clamp tanh(a), y = turn(scale [x1 | c x2 + t] + offset).

    A GIN block takes the mean from log c and has scale 1; log_det is then 0.
    """

    def prepare(self) -> None:
        keep(self, "map", ScaleMap("clamp_tanh", clamp=float(self.clamp)))
        order = None if self.householder else self._order()
        keep(self, "order", order)
        keep(self, "back", None if order is None else order.argsort())

    def _order(self) -> Tensor | None:
        order, back = (as_permutation(each.flatten(1)) for each in (self.w_perm, self.w_perm_inv))
        return order if order is not None and back is not None and torch.equal(order.argsort(), back) else None

    def forward(self, x, c=(), rev=False, jac=True):
        x, c = checked(self, x[0], self.in_channels), c if self.conditional else ()
        if x.dim() != self.input_rank + 2 or not x.is_floating_point():
            raise RuntimeError(f"AllInOneBlock: x is {x.dtype} of {x.dim()} dims, expected floats of "
                               f"{self.input_rank + 2}")
        there, back = self._turns()
        x, log_det = self._decoded(x, c, there, back) if rev else self._encoded(x, c, there, back)
        return (x,), log_det

    def _encoded(self, x: Tensor, c: list | tuple, there: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        x = _turned(x, back, there) if self.reverse_pre_permute else x
        if self.GIN or not block_node.is_one_node(x):
            x, log_det = self._scaled(*self._coupled(x, self._made(x, c), None, inverse=False), inverse=False)
            return _turned(x, there, back), log_det
        hard = not there.is_floating_point()
        order = (there, back) if hard else (None, None)
        scaling = block_node.Scaling(self.global_offset.flatten(), self._log_scale(), *order)
        settings, (passive, active) = self._settings(inverse=False), self.splits
        found = None if c else networks_of((self.subnet,), x, slice(0, passive), 2 * active)
        if found is None:
            x, log_det = block_node.coupled_and_scaled(x, self._made(x, c), scaling, settings)
        else:
            x, log_det = block_node.conditioned_and_scaled(x, *found, self._damping(x), scaling, settings)
        return x if hard else mixed(x, there), log_det

    def _decoded(self, z: Tensor, c: list | tuple, there: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = self._scaled(_turned(z, back, there), None, inverse=True)
        x, log_det = self._coupled(x, self._made(x, c), log_det, inverse=True)
        return _turned(x, there, back) if self.reverse_pre_permute else x, log_det

    def _turns(self) -> tuple[Tensor, Tensor]:
        """The map of the channels that ends the block and its inverse, as matrices or orders."""
        if self._fused_order is not None:
            return self._fused_order, self._fused_back
        if not self.householder:
            return self.w_perm.flatten(1), self.w_perm_inv.flatten(1)
        vectors, combined = reflections(self.vk_householder)
        first = self.w_0.double()
        matrix = (first - first @ vectors.T @ combined).to(self.w_0.dtype)
        return matrix, matrix.T

    def _made(self, x: Tensor, c: list | tuple) -> Tensor:
        """[a | t]."""
        passive, active = self.splits
        made, expected = asked(self.subnet, x[:, :passive], c), (x.shape[0], 2 * active, *x.shape[2:])
        if made.shape != expected:
            raise ValueError(f"AllInOneBlock: its subnet returns shape {tuple(made.shape)}, expected {expected}")
        made = made.to(compute_dtype(x))
        return made * self._damping(made)

    def _damping(self, like: Tensor) -> float | Tensor:
        """What [a | t] is multiplied by; a tensor is [2 active, 1, ...] for the dims of `like`."""
        return 0.1

    def _coupled(self, x: Tensor, made: Tensor, log_det: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if not self.GIN:
            return coupled(x, made, None, None, None, log_det, self._settings(inverse), block_node.PACKING)
        passive, x2 = x.split(self.splits, 1)
        x = torch.cat((passive, row_preserving(x2, made, self._fused_map, inverse)), 1)
        return x, x.new_zeros(x.shape[0], dtype=compute_dtype(x))  # the sum of what has mean 0

    def _settings(self, inverse: bool) -> tuple:
        """Of the coupling's schema."""
        return self.splits[0], 1, *settings_of(self._fused_map), inverse

    def _scaled(self, x: Tensor, log_det: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor | None]:
        if self.GIN:
            return x - self.global_offset if inverse else x + self.global_offset, log_det
        return scaled(x, self.global_offset.flatten(), self._log_scale(), log_det, shift_first=False, inverse=inverse)

    def _log_scale(self) -> Tensor:
        return self.global_scale_activation(self.global_scale).flatten().log()


class AllInOneNewer(AllInOne):
    """AllInOneBlock of the git tree: log c = clamp tanh(a / clamp); hard permutations are orders."""

    def _order(self) -> Tensor | None:
        return self.w_perm.detach().clone() if self.w_perm.dim() == 1 else None

    def forward(self, x, c=(), rev=False, jac=True):
        if tuple(x[0].shape[1:]) != self.dims_in[0]:
            raise RuntimeError(f"Expected input of shape {self.dims_in[0]}, got {tuple(x[0].shape[1:])}.")
        return super().forward(x, c, rev, jac)

    def _damping(self, like: Tensor) -> Tensor:
        factor = like.new_full((2 * self.splits[1], *[1] * (like.dim() - 2)), 0.1)
        factor[: self.splits[1]] /= self.clamp
        return factor


def _turned(x: Tensor, there: Tensor, back: Tensor) -> Tensor:
    return mixed(x, there) if there.is_floating_point() else permuted(x, there, back)


def _refuses(block: nn.Module) -> str:
    if not block.splits[1]:
        return "one of its parts is empty"
    if not block.clamp > 0:
        return f"its affine_clamping is {block.clamp}, expected a number > 0"
    if not block.householder and (block.w_perm.requires_grad or block.w_perm_inv.requires_grad):
        return "its permutation is trained"
    return ""


_CODE = ("forward", "_permute", "_pre_permute", "_affine", "_construct_householder_permutation")
_SERVED = "every option, conditions"
LAYERS = (
    Layer("FrEIA", "AllInOneBlock", AllInOne, _CODE, ("9bb5a4cbff6d",), _refuses, _SERVED),
    Layer("FrEIA", "AllInOneBlock", AllInOneNewer, _CODE, ("6d04f2f6ef56",), _refuses, _SERVED),
)
