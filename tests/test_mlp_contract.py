"""What the op mlp promises beside its numbers: opcheck, derivatives, torch.func, compilers, autocast, refusals."""

import re

import pytest
import torch
from backends import cpu_backends
from mlp_cases import called, everything, formulas, make
from oracles import relayout
from torch.autograd import gradcheck, gradgradcheck

from fastflow._backend import backend as forced_backend
from fastflow.ops import mlp
from fastflow.ops.mlp import _backward, _forward

backend = cpu_backends(_forward, _backward)


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("widths", [(6, 3), (6, 33, 8, 3)], ids=str)
def test_opcheck(widths, rows):
    x, parameters, grad = make(widths, rows)
    for keep in (False, True):
        torch.library.opcheck(_forward.dispatch, (x, parameters, 0.01, keep))
    _, hidden = _forward.dispatch(x, parameters, 0.01, True)
    for of_x in (False, True):
        torch.library.opcheck(_backward.dispatch, (grad, x, hidden, parameters[::2], 0.01, of_x))
    weights = [each.T.contiguous().T for each in parameters[::2]]
    torch.library.opcheck(_backward.dispatch, (grad, relayout(x, "offset"), hidden, weights, 0.0, True))


@pytest.mark.parametrize("widths", [(3, 2), (3, 5, 4, 2)], ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_first_and_second_derivatives(backend, widths, slope):
    x, parameters, _ = make(widths, 3, torch.float64)
    leaves = [each.requires_grad_() for each in (x, *parameters)]
    assert gradcheck(lambda x, *parameters: mlp(x, parameters, slope=slope), leaves)
    assert gradgradcheck(lambda x, *parameters: mlp(x, parameters, slope=slope), leaves)


def test_second_derivatives_of_some():
    x, parameters, _ = make((3, 5, 2), 4, torch.float64)
    parameters[0].requires_grad_()
    assert gradgradcheck(lambda weight: mlp(x, [weight, *parameters[1:]]).square(), parameters[:1])


def test_torch_func():
    x, parameters, _ = make((5, 33, 7, 3), 6, torch.float64)
    expected = formulas(x, parameters, 0.1)
    rows = torch.vmap(lambda row: mlp(row[None], parameters, slope=0.1)[0])(x)
    torch.testing.assert_close(rows, expected)
    direction = torch.randn_like(x)
    found, slope = torch.func.jvp(lambda x: mlp(x, parameters, slope=0.1), (x,), (direction,))
    theirs = torch.func.jvp(lambda x: formulas(x, parameters, 0.1), (x,), (direction,))
    torch.testing.assert_close((found, slope), theirs)
    for function in (torch.func.grad, lambda f: torch.func.jacrev(f)):
        ours = function(lambda weight: called(x, [weight, *parameters[1:]], 0.1).sum())(parameters[0])
        other = function(lambda weight: formulas(x, [weight, *parameters[1:]], 0.1).sum())(parameters[0])
        torch.testing.assert_close(ours, other)
    per_row = torch.vmap(torch.func.grad(lambda row: mlp(row[None], parameters, slope=0.1).sum()))(x)
    torch.testing.assert_close(per_row, everything(formulas, x, parameters, torch.ones(6, 3, dtype=x.dtype), 0.1)[1])


@pytest.mark.parametrize("widths", [(6, 3), (6, 33, 8, 3)], ids=str)
def test_compiles_into_one_graph(backend, widths):
    torch.compiler.reset()
    x, parameters, grad = make(widths, 20)
    compiled = torch.compile(called, fullgraph=True, backend="aot_eager")
    expected = everything(called, x, parameters, grad, 0.01)
    for ours, theirs in zip(everything(compiled, x, parameters, grad, 0.01), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, parameters, 0.01), expected[0])


def test_compiles_for_any_number_of_rows():
    torch.compiler.reset()
    compiled = torch.compile(called, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (20, 33, 7):
        x, parameters, grad = make((6, 33, 3), rows)
        expected = everything(called, x, parameters, grad, 0.0)
        for ours, theirs in zip(everything(compiled, x, parameters, grad, 0.0), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_autocast_leaves_the_numbers_alone(backend):
    x, parameters, grad = make((17, 33, 20), 40)
    expected = mlp(x, parameters, slope=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mlp(x, parameters, slope=0.01), expected)
    if backend == "reference":  # whose backward is PyTorch's own
        return
    expected = everything(called, x, parameters, grad, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, everything(called, x, parameters, grad, 0.01), expected))


def test_a_forced_backend_serves_or_says_why_not():
    x, parameters, _ = make((6, 8, 3), 5)
    with forced_backend("reference"):
        assert torch.equal(mlp(x, parameters), formulas(x, parameters, 0.0))
    for name in ("triton", "cuda"):
        with forced_backend(name), pytest.raises(RuntimeError, match=f"mlp: backend '{name}' was asked for and"):
            mlp(x, parameters)


def test_bad_arguments():
    good, parameters, _ = make((6, 8, 3), 5)
    first, bias, second, last = parameters

    def refused(error: type[Exception], message: str, x: object = good, parameters: object = parameters,
                slope: float = 0.0) -> None:
        with pytest.raises(error, match="^" + re.escape(f"mlp: {message}")):
            mlp(x, parameters, slope=slope)

    refused(TypeError, "x is list, expected a Tensor", x=[1.0])
    refused(TypeError, "x has dtype torch.int64, expected float64, float32, bfloat16 or float16", x=good.long())
    refused(TypeError, "x has dtype torch.bfloat16, expected float64 or float32", x=good.bfloat16())
    refused(ValueError, "x has shape (6,), expected 2 dims [B, D], D at least 1", x=good[0])
    refused(ValueError, "x has shape (2, 5, 6), expected 2 dims", x=good.expand(2, 5, 6))
    refused(ValueError, "x has shape (5, 0), expected 2 dims [B, D], D at least 1", x=good[:, :0])
    refused(ValueError, "parameters has 0 tensors, expected a matrix and a bias for each layer", parameters=[])
    refused(ValueError, "parameters has 3 tensors, expected a matrix and a bias for each layer",
            parameters=parameters[:3])
    refused(ValueError, "slope is -0.1, expected a number >= 0", slope=-0.1)
    refused(ValueError, "slope is nan, expected a number >= 0", slope=float("nan"))
    refused(TypeError, "parameters[1] is NoneType, expected a Tensor", parameters=[first, None, second, last])
    refused(TypeError, "parameters[2] has dtype torch.float64, expected torch.float32 to match x",
            parameters=[first, bias, second.double(), last])
    refused(ValueError, "parameters[3] is on meta, expected cpu like x",
            parameters=[first, bias, second, last.to("meta")])
    refused(ValueError, "parameters[0] has shape (6, 8), expected [outputs, 6], outputs at least 1",
            parameters=[first.T, bias, second, last])
    refused(ValueError, "parameters[2] has shape (3,), expected [outputs, 8]",
            parameters=[first, bias, last, last])
    refused(ValueError, "parameters[0] has shape (0, 6), expected [outputs, 6], outputs at least 1",
            parameters=[first[:0], bias[:0], second[:, :0], last])
    refused(ValueError, "parameters[3] has shape (1,), expected (3,)", parameters=[first, bias, second, last[:1]])
    refused(ValueError, "parameters[1] has shape (8, 1), expected (8,)",
            parameters=[first, bias[:, None], second, last])
