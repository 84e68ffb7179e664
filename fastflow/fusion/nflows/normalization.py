"""nflows: ActNorm, and affine maps by constants."""

import torch
from torch import Tensor

from fastflow.fusion.layer import Arithmetic, Layer, anything, keep
from fastflow.fusion.normalization import measurable
from fastflow.ops._checks import compute_dtype
from fastflow.ops.elementwise_affine import elementwise_affine


class ActNorm(Arithmetic):
    """ActNorm: z = x e^log_scale + shift; as in nflows the first training batch initialises it.

    One with fewer than two values a channel does not, where nflows makes every parameter NaN. That the layer is
    initialised is remembered: who clears the buffer to do it again fuses again, or loads a state.
    """

    def prepare(self) -> None:
        # Of Python, so that neither a device nor a compiled graph need be asked, once it is true.
        keep(self, "ready", bool(self.initialized))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_dims(inputs)
        if self.training and not self._fused_ready:
            self._start(inputs.detach())
        return elementwise_affine(inputs, self.shift, self.log_scale)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_dims(inputs)
        return elementwise_affine(inputs, self.shift, self.log_scale, inverse=True)

    @torch.no_grad()
    def _start(self, inputs: Tensor) -> None:
        """Initialises the layer if it is not; says if it cannot."""
        if not torch.compiler.is_compiling() and self.initialized:
            self._fused_ready = True
            return
        values = inputs.to(compute_dtype(inputs)).transpose(0, 1).flatten(1)
        if not measurable(values.shape[1]):
            return
        std = values.std(1)
        for parameter, start in ((self.log_scale, -std.log()), (self.shift, -(values / std[:, None]).mean(1))):
            # A compiled graph cannot ask whether a state that was initialised was put there meanwhile.
            parameter.copy_(torch.where(self.initialized, parameter, start))
        self.initialized.fill_(True)
        self._fused_ready = True


class Pointwise(Arithmetic):
    """PointwiseAffineTransform: z = x scale + shift by constants, in one pass; the inverse is nflows' own."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, scale = self._shift, self._scale
        if shift.numel() < 2 or scale.numel() < 2 or not shift.dtype == scale.dtype == inputs.dtype:
            return super().forward(inputs)  # for scalars two passes are faster
        rows, *shape = inputs.shape
        return torch.addcmul(shift, inputs, scale), self._batch_logabsdet(shape).expand(rows)


def _check_dims(inputs: Tensor) -> None:
    if inputs.dim() not in (2, 4):
        raise ValueError("Expecting inputs to be a 2D or a 4D tensor.")


LAYERS = (
    Layer("nflows", "ActNorm", ActNorm, ("forward", "inverse", "_broadcastable_scale_shift", "scale", "_initialize"),
          ("8e886216157c",), anything, "2-D and images, initialised or not"),
    *(Layer("nflows", name, Pointwise, ("forward", "inverse", "_batch_logabsdet"), ("edf2db3a5a77", "80788e57b809"),
            anything, "any shift and scale") for name in ("PointwiseAffineTransform", "AffineTransform")),
)
