"""nflows: affine and additive couplings."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastflow.fusion.couplings import conditioned, gathered, keep_split, scattered
from fastflow.fusion.layer import Arithmetic, Layer
from fastflow.ops.affine_coupling import affine_coupling, affine_coupling_packed
from fastflow.ops.scale_map import ScaleMap

_SIGMOID = ScaleMap("sigmoid", bias=2.0, eps=1e-3)
_ADDITIVE = ScaleMap("additive")


class Coupling(Arithmetic):
    """AffineCouplingTransform: s = sigmoid(a + 2) + 1e-3, z = x s + t; parameters [t | a]."""

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
        (passive, active), free, of_free = self._fused_split, self.unconditional_transform, None
        x = gathered(self, inputs)
        if inverse and free is not None:
            changed, of_free = free.inverse(x[:, passive], context)
            x = _replaced(x, passive, changed)
        given = x[:, passive]
        made = conditioned(self.transform_net, given, context)
        x, log_det = self._couple(x, made, active, inverse)
        if not inverse and free is not None:
            changed, of_free = free(given, context)
            x = _replaced(x, passive, changed)
        return scattered(self, x), log_det if of_free is None else log_det + of_free

    @staticmethod
    def _couple(x: Tensor, made: Tensor, active: slice, inverse: bool) -> tuple[Tensor, Tensor]:
        return affine_coupling_packed(x, made, packing="shift_scale", scale_map=_SIGMOID, active=active,
                                      inverse=inverse)


class Additive(Coupling):
    """AdditiveCouplingTransform: z = x + t."""

    @staticmethod
    def _couple(x: Tensor, made: Tensor, active: slice, inverse: bool) -> tuple[Tensor, Tensor]:
        return affine_coupling(x, None, made, scale_map=_ADDITIVE, active=active, inverse=inverse)


def _replaced(x: Tensor, channels: slice, by: Tensor) -> Tensor:
    return x.slice_scatter(by, 1, channels.start, channels.stop, channels.step or 1)


def _empty_part(layer: nn.Module) -> str:
    if not len(layer.transform_features) or not len(layer.identity_features):
        return "its mask leaves one part empty"
    return ""


def _of_affine(layer: nn.Module) -> str:
    # An option of the git version; that on PyPI has the default's formula in its code.
    activation = getattr(layer, "scale_activation", _DEFAULT_ACTIVATION)
    if not _is_default(activation):
        return "its scale_activation is not the default, sigmoid(x + 2) + 1e-3"
    return _empty_part(layer)


def _is_default(activation: Callable) -> bool:
    code, known = getattr(activation, "__code__", None), _DEFAULT_ACTIVATION.__code__
    return code is not None and activation.__globals__.get("torch") is torch and all(
        getattr(code, part) == getattr(known, part) for part in ("co_code", "co_consts", "co_names", "co_freevars"))


_DEFAULT_ACTIVATION = lambda x: torch.sigmoid(x + 2) + 1e-3  # noqa: E731  (compared as code)
_CODE = ("forward", "inverse", "_coupling_transform_forward", "_coupling_transform_inverse", "_scale_and_shift")
LAYERS = (
    Layer("nflows", "AffineCouplingTransform", Coupling, _CODE, ("35254e3d0b69", "a6266fe0e341"), _of_affine,
          "any mask, context, 2-D and images, an unconditional transform, the default scale_activation"),
    Layer("nflows", "AdditiveCouplingTransform", Additive, _CODE, ("42f923f1940c",), _empty_part,
          "any mask, context, 2-D and images, an unconditional transform"),
)
