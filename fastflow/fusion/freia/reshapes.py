"""FrEIA: squeezing without convolutions, and flattening."""

import math

import torch
from torch import Tensor, nn

from fastflow.fusion.freia.subnets import checked
from fastflow.fusion.layer import Arithmetic, Layer, anything, digest
from fastflow.ops.channel_map import ChannelMap
from fastflow.ops.channel_mix import map_channels
from fastflow.ops.squeeze import squeeze


class Squeezed(Arithmetic):
    """IRevNetDownsampling: channel 4 c + 2 dy + dx, or with its legacy backend (2 dy + dx) C + c; log_det is 0."""

    up = False

    def forward(self, x, c=None, jac=True, rev=False):
        rev = rev != self.up
        x = checked(self, x[0], self.channels * (4 if rev else 1))
        return (squeeze(x, order="position" if self.legacy_backend else "channel", inverse=rev),), 0.0


class Unsqueezed(Squeezed):
    """IRevNetUpsampling."""

    up = True


class Wavelets(Arithmetic):
    """HaarDownsampling: one matrix times the four pixels that become one; log_det is a number."""

    up = False

    def forward(self, x, c=None, jac=True, rev=False):
        rev = rev != self.up
        x, channels = checked(self, x[0], self.in_channels * (4 if rev else 1)), self.in_channels
        rows, height, width = x.shape[0], *x.shape[2:]
        log_det = math.prod(x.shape[1:]) * (self.jac_rev if rev else self.jac_fwd)
        matrix = self.haar_weights[:4].reshape(4, 4)
        if rev:
            x = x.view(rows, 4, channels, height, width).transpose(1, 2) if self.permute else x
            x = _of_each_channel(x.reshape(rows * channels, 4, height, width), matrix.t() * self.fac_rev, -1)
            return (x.view(rows, channels, 2 * height, 2 * width),), log_det
        if height % 2 or width % 2:
            raise RuntimeError(f"{self._get_name()}: x has shape {tuple(x.shape)}, expected even height and width")
        x = _of_each_channel(x.reshape(rows * channels, 1, height, width), matrix * self.fac_fwd, 1)
        x = x.view(rows, channels, 4, height // 2, width // 2)
        return ((x.transpose(1, 2) if self.permute else x).flatten(1, 2),), log_det


class Unwaved(Wavelets):
    """HaarUpsampling."""

    up = True


def _of_each_channel(x: Tensor, matrix: Tensor, squeezing: int) -> Tensor:
    return map_channels(x, ChannelMap(matrix, matrix.new_zeros(())), squeezing=squeezing)[0]


class Flattened(Arithmetic):
    """Flatten, for any batch and any strides; log_det is the number 0."""

    def forward(self, x, c=None, jac=True, rev=False):
        x = x[0]
        return (x.reshape(x.shape[0], *self.input_shape) if rev else x.flatten(1),), 0.0


_BASES = {"IRevNetDownsampling": "da3c0df6c967", "HaarDownsampling": "adc64c9fe01c"}  # what the upsamplings call


def _unknown_base(layer: nn.Module) -> str:
    base = next((cls for cls in type(layer).__mro__ if cls.__name__ in _BASES), None)
    known = base is not None and digest(base, ("forward",)) == _BASES[base.__name__]
    return "" if known else "its base class is not that of a known FrEIA release"


def _other_kernel(layer: nn.Module) -> str:
    if _unknown_base(layer) or layer.legacy_backend:
        return _unknown_base(layer)
    kernel = layer.downsample_kernel
    same = torch.equal(kernel.flatten(1), torch.eye(4).to(kernel).repeat(layer.channels, 1))
    return "" if same else "its downsample_kernel is not a permutation of the four pixels"


def _other_wavelets(layer: nn.Module) -> str:
    weights = layer.haar_weights
    same = torch.equal(weights, weights[:4].repeat(layer.in_channels, 1, 1, 1))
    return _unknown_base(layer) or ("" if same else "its haar_weights differ between the channels")


_UP = "dbd5e5a333bb"
LAYERS = (
    Layer("FrEIA", "IRevNetDownsampling", Squeezed, ("forward",), ("da3c0df6c967",), _other_kernel, "both backends"),
    Layer("FrEIA", "IRevNetUpsampling", Unsqueezed, ("forward",), (_UP,), _other_kernel, "both backends"),
    Layer("FrEIA", "HaarDownsampling", Wavelets, ("forward",), ("adc64c9fe01c",), _other_wavelets, "every option"),
    Layer("FrEIA", "HaarUpsampling", Unwaved, ("forward",), (_UP,), _other_wavelets, "every option"),
    Layer("FrEIA", "Flatten", Flattened, ("forward",), ("298dbecb12e2",), anything, "any batch and strides"),
)
