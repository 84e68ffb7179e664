"""Multilayer perceptron, the conditioner of flows on vectors: linear layers with a (leaky) rectifier in between.

    h_0 = x        a_n = W_n h_{n-1} + b_n        h_n = a_n where a_n > 0, else slope a_n        out = a_N

One pass over tiles of rows that stay in the cache, forward and backward; x, activations and parameters are saved.
On CUDA the reference serves, whose products are the vendor's.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import COMPUTE_DTYPE, bad_device, bad_dtype, bad_shape, bad_type, check_float
from fastflow.ops._define import Op, by_reference, under_transform, without_autocast


def reference(x: Tensor, parameters: Sequence[Tensor], slope: float) -> Tensor:
    """The definition, in differentiable PyTorch. parameters are W_1 [H_1, D], b_1 [H_1], W_2, b_2, ..."""
    return _layers(x, parameters, slope)[-1]


def _layers(x: Tensor, parameters: Sequence[Tensor], slope: float) -> list[Tensor]:
    """x, the activations of every hidden layer, and out."""
    values, last = [x], len(parameters) // 2 - 1
    with without_autocast(x):
        for n, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
            value = F.linear(values[-1], weight, bias)
            if n < last:
                value = F.leaky_relu(value, slope) if slope else F.relu(value)
            values.append(value)
    return values


def backward_reference(grad: Tensor, x: Tensor, parameters: Sequence[Tensor], slope: float,
                       ) -> tuple[Tensor, list[Tensor]]:
    """Gradients of x and of the parameters."""
    return _gradients(grad, _layers(x, parameters, slope)[:-1], parameters[::2], slope)


def _gradients(grad: Tensor, inputs: list[Tensor], weights: Sequence[Tensor], slope: float,
               ) -> tuple[Tensor, list[Tensor]]:
    grads: list[Tensor] = []
    with without_autocast(grad):
        for n in reversed(range(len(weights))):
            grads = [grad.mT @ inputs[n], grad.sum(0), *grads]
            grad = grad @ weights[n]
            if n:
                h = inputs[n]  # of a NaN ReLU passes the gradient, and LeakyReLU its slope times that, as in PyTorch
                grad = torch.where(h > 0, grad, grad * slope) if slope else grad.masked_fill(h <= 0, 0.0)
    return grad, grads


def _places(features: int) -> int:
    return -(-features // 32) * 32


def _hidden_like(x: Tensor, widths: Sequence[int], rows: int) -> Tensor:
    """Uninitialised, for the activations of layers of these widths, each in its places, side by side."""
    return x.new_empty(rows, sum(map(_places, widths)))


def _fallback(x: Tensor, parameters: list[Tensor], slope: float, keep: bool) -> tuple[Tensor, Tensor]:
    _, *hidden, out = _layers(x, parameters, slope)
    kept = _hidden_like(x, [each.shape[1] for each in hidden], len(x) if keep else 0).zero_()
    first = 0
    for each in hidden if keep else ():
        kept[:, first : first + each.shape[1]] = each
        first += _places(each.shape[1])
    return out, kept


def _backward_fallback(grad: Tensor, x: Tensor, hidden: Tensor, weights: list[Tensor], slope: float, of_x: bool,
                       ) -> tuple[Tensor, list[Tensor]]:
    widths = [weight.shape[0] for weight in weights[:-1]]
    starts = itertools.accumulate(map(_places, widths), initial=0)
    kept = [hidden[:, start : start + width] for start, width in zip(starts, widths, strict=False)]
    grad_x, grads = _gradients(grad, [x, *kept], weights, slope)
    return grad_x if of_x else grad_x[:0], grads


def _fake(x, parameters, slope, keep):
    widths = [len(weight) for weight in parameters[:-2:2]]
    return x.new_empty(x.shape[0], len(parameters[-1])), _hidden_like(x, widths, x.shape[0] if keep else 0)


def _backward_fake(grad, x, hidden, weights, slope, of_x):
    grads = [each for weight in weights for each in (weight.new_empty(weight.shape), weight.new_empty(len(weight)))]
    return x.new_empty(x.shape[0] if of_x else 0, x.shape[1]), grads


_forward = Op(
    "mlp", "(Tensor x, Tensor[] parameters, float slope, bool keep) -> (Tensor, Tensor)",
    reference=reference, fallback=_fallback, fake=_fake,
)
_backward = Op(
    "mlp_backward",
    "(Tensor grad, Tensor x, Tensor hidden, Tensor[] weights, float slope, bool of_x) -> (Tensor, Tensor[])",
    reference=backward_reference, fallback=_backward_fallback, fake=_backward_fake,
)


class _Mlp(torch.autograd.Function):
    """Saves x, the activations and the parameters."""

    @staticmethod
    def forward(ctx, x, slope, *parameters):
        out, hidden = _forward.dispatch(x, parameters, slope, True)
        ctx.slope = slope
        ctx.save_for_backward(x, hidden, *parameters)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, hidden, *parameters = ctx.saved_tensors
        if by_reference(grad):
            grad_x, grads = backward_reference(grad, x, parameters, ctx.slope)
            return grad_x, None, *grads
        of_x = ctx.needs_input_grad[0]
        grad_x, grads = _backward.dispatch(grad, x, hidden, parameters[::2], ctx.slope, of_x)
        return grad_x if of_x else None, None, *grads


def mlp(x: Tensor, parameters: Sequence[Tensor], *, slope: float = 0.0) -> Tensor:
    """The output [B, H_N] of a multilayer perceptron.

    x           [B, D], D at least 1, any strides, float64 or float32
    parameters  W_1 [H_1, D], b_1 [H_1], W_2 [H_2, H_1], b_2 [H_2], ..., in x's dtype, any strides
    slope       at least 0, of the activation below 0: 0 is ReLU, others LeakyReLU

    Raises TypeError or ValueError naming the argument; RuntimeError if a forced backend cannot serve the call.
    """
    op = "mlp"
    check_float(op, "x", x)
    if COMPUTE_DTYPE[x.dtype] != x.dtype:
        raise bad_dtype(op, "x", x, "float64 or float32")
    if x.dim() != 2 or x.shape[1] == 0:
        raise bad_shape(op, "x", x, "2 dims [B, D], D at least 1")
    if not parameters or len(parameters) % 2:
        raise ValueError(f"{op}: parameters has {len(parameters)} tensors, expected a matrix and a bias for each layer")
    if not slope >= 0:
        raise ValueError(f"{op}: slope is {slope}, expected a number >= 0")
    width = x.shape[1]
    for n, value in enumerate(parameters):
        name = f"parameters[{n}]"
        if not isinstance(value, Tensor):
            raise bad_type(op, name, value)
        if value.dtype != x.dtype:
            raise bad_dtype(op, name, value, f"{x.dtype} to match x")
        if value.device != x.device:
            raise bad_device(op, name, value, x)
        if n % 2 == 0:
            if value.dim() != 2 or value.shape[1] != width or value.shape[0] == 0:
                raise bad_shape(op, name, value, f"[outputs, {width}], outputs at least 1")
            width = value.shape[0]
        elif value.shape != (width,):
            raise bad_shape(op, name, value, (width,))
    return compute(x, parameters, slope)


def compute(x: Tensor, parameters: Sequence[Tensor], slope: float) -> Tensor:
    """Serves a checked call."""
    backend = _backend.forced()
    if backend == "reference" or under_transform():
        return reference(x, parameters, slope)
    if backend is not None:
        _backend.require("mlp", backend, x.device.type)
    if torch.is_grad_enabled() and (x.requires_grad or any(each.requires_grad for each in parameters)):
        return _Mlp.apply(x, slope, *parameters)
    return _forward.dispatch(x, parameters, slope, False)[0]
