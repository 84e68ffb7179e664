"""Conditioners that are linear layers with (leaky) rectifiers in between: an nn.Sequential or a class made of one.

On the CPU they are one op. Its layers are looked at in every call, so that those which were replaced, hooked or
parametrised since are called as PyTorch would, and so is everything where its products or its compiler do better.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastflow import _backend
from fastflow.fusion.layer import Arithmetic, digest, is_customised
from fastflow.ops._define import under_transform
from fastflow.ops.mlp import compute

# Fewer rows do not pay for packing the weights, and wider layers keep PyTorch's own products busy: see
# `benchmarks/mlp.py`.
_FEWEST_ROWS, _WIDEST = 64, 256
_PLAIN = {Tensor, nn.Parameter}  # other tensors may compute in ways of their own


class Mlp(Arithmetic):
    """The call of an `nn.Sequential`, as one op where `serves` and `layers_of` find that it can be."""

    def forward(self, input: Tensor) -> Tensor:
        found = layers_of(self) if serves(input) else None
        if found is None or not fits(input, input.shape[-1], found[0]):
            return super().forward(input)
        if input.dim() == 2:
            return compute(input, *found)
        return compute(input.flatten(0, -2), *found).unflatten(0, input.shape[:-1])


def is_mlp(module: nn.Module) -> bool:
    """Whether the module is one that `Mlp` is for, and not fused."""
    return (isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
            and not is_customised(module) and layers_of(module) is not None)


def unwrapped(module: nn.Module) -> nn.Module:
    """The `Mlp` that a call of the module is a call of, or the module."""
    return module.net if _is_wrapper(type(module)) and not is_customised(module) else module


def serves(x: Tensor) -> bool:
    """Whether x is what the kernels take, in a call that is nothing but its numbers."""
    # The number of rows comes last: a compiler or tracer would take the comparison for a promise.
    return (type(x) in _PLAIN and x.layout is torch.strided and not x.is_nested
            and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
            and not torch.compiler.is_compiling() and not torch.jit.is_tracing() and not under_transform()
            and not torch.is_autocast_enabled("cpu") and not _has_any_global_hook()
            and _backend.forced() in (None, "cpu") and _backend.state("cpu").status == "available"
            and x.dim() > 1 and x.numel() >= _FEWEST_ROWS * x.shape[-1])


def layers_of(module: nn.Sequential) -> tuple[list[Tensor], float] | None:
    """(W_1, b_1, W_2, ..., slope) of the layers as they are now; None unless they are linear and rectify in turn."""
    parameters, slope = [], None
    for n, part in enumerate(module._modules.values()):
        if part is None or is_customised(part):
            return None
        if n % 2:
            own = _slope(part)
            if own is None or slope not in (None, own):
                return None
            slope = own
        else:
            own = part._parameters  # not by attribute, which Module makes slow
            weight, bias = own.get("weight"), own.get("bias")
            if not (_is_linear(type(part)) and type(weight) in _PLAIN and type(bias) in _PLAIN and weight.dim() == 2):
                return None
            parameters += weight, bias
    return (parameters, slope) if slope is not None and n % 2 == 0 else None


def _slope(activation: nn.Module) -> float | None:
    if type(activation) is nn.ReLU:
        return 0.0
    if type(activation) is nn.LeakyReLU and activation.negative_slope >= 0:
        return float(activation.negative_slope)
    return None


_ZUKO_LINEAR = "08a3ffae792f"
_NORMFLOWS_MLP = "c889a91bc0d6"  # return self.net(x)


@cache
def _is_wrapper(cls: type[nn.Module]) -> bool:
    return cls.__name__ == "MLP" and digest(cls, ("forward",)) == _NORMFLOWS_MLP


@cache
def _is_linear(cls: type[nn.Module]) -> bool:
    return cls is nn.Linear or (cls.__name__ == "Linear" and digest(cls, ("forward",)) == _ZUKO_LINEAR)


def fits(x: Tensor, width: int, parameters: list[Tensor]) -> bool:
    """Whether the parameters are for `width` of x's features, and each other's; where they are not PyTorch says so."""
    dtype = x.dtype
    for each in parameters:
        if each.dtype is not dtype or not each.is_cpu or each.layout is not torch.strided:
            return False
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        outputs, inputs = weight.shape
        if inputs != width or not 0 < width <= _WIDEST or bias.shape != (outputs,):
            return False
        width = outputs
    return 0 < width <= _WIDEST
