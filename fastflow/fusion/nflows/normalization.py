"""nflows: ActNorm."""

from torch import Tensor

from fastflow.fusion.layer import Arithmetic, Layer, anything, keep
from fastflow.ops.elementwise_affine import elementwise_affine


class ActNorm(Arithmetic):
    """ActNorm: z = x e^log_scale + shift; as in nflows the first training batch initialises it."""

    def prepare(self) -> None:
        keep(self, "ready", bool(self.initialized))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_dims(inputs)
        if self.training and not self._fused_ready:  # of Python, so that a compiled graph need not ask
            if not self.initialized:
                self._initialize(inputs)
            self._fused_ready = True
        return elementwise_affine(inputs, self.shift, self.log_scale)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_dims(inputs)
        return elementwise_affine(inputs, self.shift, self.log_scale, inverse=True)


def _check_dims(inputs: Tensor) -> None:
    if inputs.dim() not in (2, 4):
        raise ValueError("Expecting inputs to be a 2D or a 4D tensor.")


LAYERS = (
    Layer("nflows", "ActNorm", ActNorm, ("forward", "inverse", "_broadcastable_scale_shift", "scale", "_initialize"),
          ("8e886216157c",), anything, "2-D and images, initialised or not"),
)
