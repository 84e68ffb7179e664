"""normflows: constant affine maps, and ActNorm, which finds its own on the first batch.

    forward  z e^s + t                            inverse  (z - t) e^-s

log_det is one number for all rows, as in normflows; with classes one a row.
"""

import math

import torch
from torch import Tensor, nn

from fastflow.fusion.layer import Arithmetic, Layer, anything, digest, keep, original_class
from fastflow.fusion.normalization import measurable
from fastflow.ops._checks import COMPUTE_DTYPE
from fastflow.ops._define import without_autocast
from fastflow.ops.elementwise_affine import elementwise_affine

_LEAST = 2**16  # numbers of an image batch from which on the kernel is faster, backwards too


class AffineConst(Arithmetic):
    """AffineConstFlow."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, inverse=True)

    def _fused(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        s, t = self.s, self.t
        each, row, pixels = s.shape[1:], z.shape[1:], 1
        if each != row:
            if not _broadcasts(each, row):
                return super().inverse(z) if inverse else super().forward(z)
            pixels = math.prod(row) // s.numel()
        log_scale = -s if inverse else s
        log_det = log_scale.sum()
        if pixels > 1:
            log_det = log_det * pixels
            if s.numel() == row[0] == each[0] and s.dtype == z.dtype and _takes_the_kernel(z):
                return elementwise_affine(z, t.flatten(), s.flatten(), inverse=inverse)[0], log_det
        scale = torch.exp(log_scale)
        return (z - t) * scale if inverse else torch.addcmul(t, z, scale), log_det


def _broadcasts(each: tuple[int, ...], row: tuple[int, ...]) -> bool:
    """Whether parameters of the shape `each` broadcast to rows of z, and not the other way round."""
    return len(each) == len(row) and all(
        mine == 1 or mine == theirs for mine, theirs in zip(each, row, strict=True))


def _takes_the_kernel(z: Tensor) -> bool:
    return z.dim() <= 5 and not torch.compiler.is_compiling() and z.numel() >= _LEAST


class ActNorm(AffineConst):
    """ActNorm. The first call initialises it, in either direction, in eval mode too; a batch too small for that leaves
    it as it is, with a warning."""

    def prepare(self) -> None:
        keep(self, "ready", bool(self.data_dep_init_done > 0))

    def _fused(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if not self._fused_ready:  # of Python, so that a compiled graph need not ask
            self._initialize(z, inverse)
        return super()._fused(z, inverse)

    def _initialize(self, z: Tensor, inverse: bool) -> None:
        if not torch.compiler.is_compiling() and self.data_dep_init_done > 0:
            self._fused_ready = True
            return
        if not measurable(math.prod([z.shape[dim] for dim in self.batch_dims])):
            return
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError("ActNorm: it is not initialised, expected a first call outside of torch.func")
        with torch.no_grad():
            known = z.to(COMPUTE_DTYPE[z.dtype])
            s = torch.log(known.std(dim=self.batch_dims, keepdim=True) + 1e-6)
            mean = known.mean(dim=self.batch_dims, keepdim=True)
        self.s.data, self.t.data = (s, mean) if inverse else (-s, -mean * torch.exp(-s))
        self.data_dep_init_done = torch.ones_like(self.data_dep_init_done)
        self._fused_ready = True


class ClassAffineConst(Arithmetic):
    """CCAffineConst: classes y [B, K] are one-hot, or weights."""

    def forward(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, y, inverse=False)

    def inverse(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._fused(z, y, inverse=True)

    def _fused(self, z: Tensor, y: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        row = z.shape[1:]
        if not _broadcasts(self.shape, row):
            return super().inverse(z, y) if inverse else super().forward(z, y)
        if torch.is_autocast_enabled(z.device.type):
            y = y.to(self.s_cc.dtype)
        with without_autocast(z):
            s, t = self._of_classes(y)
        log_scale = -s if inverse else s
        log_det, scale = log_scale.flatten(1).sum(1), torch.exp(log_scale)
        if self.shape != row:
            log_det = log_det * (math.prod(row) // math.prod(self.shape))
        return (z - t) * scale if inverse else z * scale + t, log_det

    def _of_classes(self, y: Tensor) -> list[Tensor]:
        """s and t of every row."""
        return [torch.addmm(each.flatten(1), y, of_class).view(-1, *self.shape)
                for each, of_class in ((self.s, self.s_cc), (self.t, self.t_cc))]


class Shift(Arithmetic):
    """Shift, out of place: what a fused layer gave is kept for its gradient."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z - self.shift, z.new_zeros(z.shape[0])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z + self.shift, z.new_zeros(z.shape[0])


_CODE = ("forward", "inverse")
_CONST_DIGESTS = ("67a283c60ec5",)


def _of_act_norm(layer: nn.Module) -> str:
    if digest(original_class(layer).__base__, _CODE) not in _CONST_DIGESTS:
        return "the code of AffineConstFlow, which it calls, is not that of a known normflows release"
    return ""


LAYERS = (
    Layer("normflows", "AffineConstFlow", AffineConst, _CODE, _CONST_DIGESTS, anything, "any shape that broadcasts"),
    Layer("normflows", "ActNorm", ActNorm, _CODE, ("083210c56188",), _of_act_norm,
          "any shape, initialised or not, by either direction"),
    Layer("normflows", "Shift", Shift, _CODE, ("48f8c53915b6",), anything, "any shape, its input left as it is"),
    Layer("normflows", "ActNorm", Arithmetic, ("forward",), ("7a30b0776ca3",), anything,
          "that of conditioners: it calls the other, which is fused"),
    Layer("normflows", "CCAffineConst", ClassAffineConst, _CODE, ("b973cdf027c7",), anything, "any shape, any weights"),
)
