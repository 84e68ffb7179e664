"""MLPs of any widths, as a user of PyTorch writes them, and everything that the op computes of one."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow.ops import mlp


def formulas(x: Tensor, parameters: list[Tensor], slope: float) -> Tensor:
    """As a user of PyTorch writes them."""
    *hidden, (weight, bias) = zip(parameters[::2], parameters[1::2], strict=True)
    for matrix, vector in hidden:
        x = F.linear(x, matrix, vector)
        x = F.leaky_relu(x, slope) if slope else F.relu(x)
    return F.linear(x, weight, bias)


def called(x: Tensor, parameters: list[Tensor], slope: float) -> Tensor:
    return mlp(x, parameters, slope=slope)


def make(widths: tuple[int, ...], rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor], Tensor]:
    """x, parameters and a gradient of the output, float32's numbers. No rectifier's input is so near 0 that rounding
    decides its sign."""
    parameters = []
    for inputs, outputs in itertools.pairwise(widths):
        parameters += [1.4 * torch.randn(outputs, inputs) / inputs**0.5, 0.3 * torch.randn(outputs)]
    x = torch.randn(2 * rows + 8, widths[0])
    clear, h = torch.ones(len(x), dtype=torch.bool), x.double()
    for weight, bias in list(zip(parameters[::2], parameters[1::2], strict=True))[:-1]:
        a = F.linear(h, weight.double(), bias.double())
        clear &= a.abs().amin(1) > 5e-5
        h = F.relu(a)
    x = x[clear][:rows]
    if len(x) < rows:  # a layer of one dead unit leaves another's input at a bias that is near 0
        return make(widths, rows, dtype)
    return x.to(dtype), [each.to(dtype) for each in parameters], torch.randn(rows, widths[-1]).to(dtype)


def everything(function, x: Tensor, parameters: list[Tensor], grad: Tensor, slope: float) -> list[Tensor]:
    """Output, and gradients of x and of each parameter, of tensors where they lie."""
    leaves = [each.detach().requires_grad_() for each in (x, *parameters)]
    out = function(leaves[0], leaves[1:], slope)
    return [out, *torch.autograd.grad(out, leaves, grad)]
