"""nflows: affine and additive couplings."""

from torch import Tensor, nn

from fastflow.fusion.couplings import conditioned, fork, gathered, keep_split, scattered
from fastflow.fusion.layer import Arithmetic, Layer
from fastflow.ops.affine_coupling import affine_coupling, affine_coupling_packed
from fastflow.ops.scale_map import ScaleMap

_SIGMOID = ScaleMap("sigmoid", bias=2.0, eps=1e-3)
_ADDITIVE = ScaleMap("additive")


class Coupling(Arithmetic):
    """AffineCouplingTransform: s = sigmoid(a + 2) + 1e-3, z = x s + t; parameters [t | a]."""

    additive = False

    def prepare(self) -> None:
        keep_split(self, self.identity_features.tolist(), self.transform_features.tolist())

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._fused(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._fused(inputs, context, inverse=True)

    def _fused(self, inputs: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        if inputs.dim() not in (2, 4):
            raise ValueError("Inputs must be a 2D or a 4D tensor.")
        if inputs.shape[1] != self.features:
            raise ValueError(f"Expected features = {self.features}, got {inputs.shape[1]}.")
        (passive, active), log_det, free = self._fused_split, None, self.unconditional_transform
        x = gathered(self, inputs)
        if inverse and free is not None:
            changed, log_det = free.inverse(x[:, passive], context)
            x = _replaced(x, passive, changed)
        x, given = fork(x, passive, alone=not self.additive)
        x, log_det = self._couple(x, conditioned(self.transform_net, given, context), active, log_det, inverse)
        if not inverse and free is not None:
            changed, own = free(given, context)
            x, log_det = _replaced(x, passive, changed), log_det + own
        return scattered(self, x), log_det

    @staticmethod
    def _couple(x: Tensor, made: Tensor, active: slice, log_det: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return affine_coupling_packed(x, made, packing="shift_scale", scale_map=_SIGMOID, active=active,
                                      log_det=log_det, inverse=inverse)


class Additive(Coupling):
    """AdditiveCouplingTransform: z = x + t."""

    additive = True

    @staticmethod
    def _couple(x: Tensor, made: Tensor, active: slice, log_det: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        return affine_coupling(x, None, made, scale_map=_ADDITIVE, active=active, log_det=log_det, inverse=inverse)


def _replaced(x: Tensor, channels: slice, by: Tensor) -> Tensor:
    return x.slice_scatter(by, 1, channels.start, channels.stop, channels.step or 1)


def _empty_part(layer: nn.Module) -> str:
    if not len(layer.transform_features) or not len(layer.identity_features):
        return "its mask leaves one part empty"
    return ""


_COUPLING_CODE = (
    "forward", "inverse", "_coupling_transform_forward", "_coupling_transform_inverse", "_scale_and_shift")
LAYERS = (
    Layer("nflows", "AffineCouplingTransform", Coupling, _COUPLING_CODE, ("35254e3d0b69",), _empty_part,
          "any mask, context, 2-D and images, an unconditional transform"),
    Layer("nflows", "AdditiveCouplingTransform", Additive, _COUPLING_CODE, ("42f923f1940c",), _empty_part,
          "as AffineCouplingTransform"),
)
