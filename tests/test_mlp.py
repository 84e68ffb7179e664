"""Multilayer perceptron: outputs and gradients, layouts, padding, extremes, threads, on every backend of the CPU."""

import itertools
import os
import re
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from backends import cpu_backends
from hypothesis import HealthCheck, given, settings
from needs import SANITIZED, without_asan
from oracles import LAYOUTS, assert_same_bits_on_any_threads, assert_three_way, relayout
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fastflow import _library
from fastflow._backend import backend as forced_backend
from fastflow.ops import mlp
from fastflow.ops.mlp import _backward, _forward

backend = cpu_backends(_forward, _backward)
SLOPES = [0.0, 0.01, 1.0]
WIDTHS = [(1, 1), (3, 17), (17, 31, 1), (32, 64, 32), (33, 100, 31, 3), (64, 100, 100, 64), (3, 256, 270, 33),
          (100, 32, 17, 3, 1, 64)]  # fmt: skip
ROWS = [0, 1, 13, 14, 15, 112, 113, 300]


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


def terms_of_sums(x: Tensor, parameters: list[Tensor], grad: Tensor, slope: float) -> list[Tensor]:
    """The sums of the absolute values of what each result of `everything` adds up."""
    weights, inputs = parameters[::2], [x]
    for weight, bias in zip(weights[:-1], parameters[1:-2:2], strict=True):
        inputs.append(F.leaky_relu(F.linear(inputs[-1], weight, bias), slope))
    out, sums = F.linear(inputs[-1].abs(), weights[-1].abs(), parameters[-1].abs()), []
    for weight, source in zip(reversed(weights), reversed(inputs), strict=True):
        sums = [grad.abs().T @ source.abs(), grad.abs().sum(0), *sums]
        of_input = grad.abs() @ weight.abs()
        grad = torch.where(source > 0, 1.0, slope) * (grad @ weight)
    return [out, of_input, *sums]


def check(x: Tensor, parameters: list[Tensor], grad: Tensor, slope: float) -> None:
    precise = x.double(), [each.double() for each in parameters], grad.double(), slope
    exact, terms = everything(formulas, *precise), terms_of_sums(*precise)
    eager = everything(formulas, x.float(), [each.float() for each in parameters], grad.float(), slope)
    if x.dtype == torch.float64:  # eager's rounding is float32's, 2^-29 times as large, and the truth has as much
        eager = [truth + (single.double() - truth) * 2.0**-28 for single, truth in zip(eager, exact, strict=True)]
    found = everything(called, x, parameters, grad, slope)
    # Eager's error is its largest of all results, relative to their sizes: of few numbers it is small by chance.
    worst = max((float((theirs - truth).detach().abs().amax() / sizes.amax()) for theirs, truth, sizes in
                 zip(eager, exact, terms, strict=True) if truth.numel() and sizes.amax() > 0), default=0.0)
    for place, (ours, truth, sizes) in enumerate(zip(found, exact, terms, strict=True)):
        assert ours.dtype == x.dtype
        allowed = truth + worst * sizes.amax() if sizes.numel() else truth
        assert_three_way(ours, allowed, truth, name=f"result {place}, slope {slope}", terms=sizes)


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@DTYPES
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_three_way(backend, widths, dtype):
    for rows, slope in zip(ROWS, 3 * SLOPES, strict=False):
        check(*make(widths, rows, dtype), slope)


@DTYPES
@pytest.mark.parametrize("widths", [(1, 1), (17, 64, 3), (33, 100, 100, 64)], ids=str)
def test_three_way_of_more_rows_than_backward_holds_at_once(backend, widths, dtype):
    for slope in SLOPES:
        check(*make(widths, 1500, dtype), slope)


def windowed(x: Tensor) -> Tensor:
    """The values of x in columns of a wider matrix of NaN."""
    wide = x.new_full((len(x), x.shape[1] + 7), float("nan"))
    wide[:, 3:-4] = x
    return wide[:, 3:-4]


@DTYPES
@pytest.mark.parametrize("layout", [*LAYOUTS, "windowed"])
def test_layouts(backend, layout, dtype):
    """Of x, of the matrices and of the incoming gradient; biases with a stride."""
    x, parameters, grad = make((33, 100, 31, 17), 115, dtype)

    def moved(each: Tensor) -> Tensor:
        if each.dim() == 1:
            return relayout(each, "strided")
        return windowed(each) if layout == "windowed" else relayout(each, layout)

    check(moved(x), [moved(each) for each in parameters], moved(grad), 0.01)
    check(moved(x), parameters, grad, 0.0)
    check(x, [moved(each) for each in parameters], grad, 0.0)
    check(x, parameters, moved(grad), 0.0)


@pytest.mark.parametrize("widths", [(17, 33, 20), (32, 32), (1, 1)], ids=str)
def test_expanded_operands(backend, widths):
    """One row for all, one number for all."""
    x, parameters, grad = make(widths, 40)
    check(x[:1].expand(40, -1), parameters, grad[:1].expand(40, -1), 0.01)
    check(x, parameters, grad[:1, :1].expand(40, widths[-1]), 0.01)
    check(x, [*parameters[:-1], parameters[-1][:1].expand(widths[-1])], grad[:, :1].expand(-1, widths[-1]), 0.01)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(1, 70), min_size=2, max_size=6), st.integers(0, 130), st.sampled_from([0.0, 0.2, 1.0, 3.0]),
       st.lists(st.sampled_from(["contiguous", "strided", "transposed", "offset"]), min_size=3, max_size=3),
       st.integers(0, 2**31))
def test_any_shape_and_strides(widths, rows, slope, layouts, seed):
    torch.manual_seed(seed)
    x, parameters, grad = make(tuple(widths), rows, torch.float64)
    x, grad = relayout(x, layouts[0]), relayout(grad, layouts[1])
    parameters = [relayout(each, layouts[2] if each.dim() == 2 else "strided") for each in parameters]
    expected = everything(formulas, x, parameters, grad, slope)
    for ours, theirs in zip(everything(called, x, parameters, grad, slope), expected, strict=True):
        scale = theirs.detach().abs().max().item() if theirs.numel() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * max(1.0, scale))


def test_only_what_is_wanted_has_a_gradient(backend):
    """Without one for x, or for some or all parameters, the others are the same bits."""
    x, parameters, grad = make((17, 33, 20), 115)
    _, *expected = everything(called, x, parameters, grad, 0.01)
    tensors = [x, *parameters]
    for wanted in ([0], [1], [2], [3, 4], [0, 4], [1, 2, 3, 4]):
        leaves = [each.detach().requires_grad_(place in wanted) for place, each in enumerate(tensors)]
        out = mlp(leaves[0], leaves[1:], slope=0.01)
        out.backward(grad)
        for place, each in enumerate(leaves):
            assert torch.equal(each.grad, expected[place]) if place in wanted else each.grad is None
    assert not mlp(x, parameters).requires_grad


def test_results_are_the_same_bits_whether_activations_are_kept_or_not(backend):
    x, parameters, _ = make((17, 33, 100, 20), 300)
    kept = mlp(x.requires_grad_(), parameters, slope=0.01)
    with torch.no_grad():
        assert torch.equal(mlp(x, parameters, slope=0.01), kept)
    with torch.inference_mode():
        assert torch.equal(mlp(x, parameters, slope=0.01), kept)


@pytest.mark.parametrize("slope", SLOPES)
@DTYPES
def test_nan_and_infinity(backend, dtype, slope):
    """As PyTorch has them, in their rows only."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1.0], [nan], [inf], [-inf], [-2.0]], dtype=dtype).repeat(9, 1)
    parameters = [torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0.5, -0.25, 1.0]), torch.tensor([[1.0, 0.5, 2.0]]),
                  torch.tensor([0.125])]  # fmt: skip
    parameters = [each.to(dtype) for each in parameters]
    torch.testing.assert_close(mlp(x, parameters, slope=slope), formulas(x, parameters, slope), equal_nan=True)
    wide, parameters, _ = make((40, 33, 20), 115, dtype)
    expected = mlp(wide, parameters, slope=slope)
    spoilt = wide.clone()
    spoilt[20, 3], spoilt[50, 39], spoilt[110, 0] = nan, inf, -inf
    found, theirs = mlp(spoilt, parameters, slope=slope), formulas(spoilt, parameters, slope)
    rows = [20, 50, 110]
    torch.testing.assert_close(found[rows], theirs[rows], equal_nan=True, rtol=1e-4, atol=1e-4)
    assert found[20].isnan().all()
    others = [row for row in range(115) if row not in rows]
    torch.testing.assert_close(found[others], expected[others], rtol=0, atol=1e-5 if backend != "cpu" else 0)


@pytest.mark.parametrize("slope", [0.0, 0.1])
@DTYPES
def test_gradients_of_nan_and_infinity(backend, dtype, slope):
    """Where its input is NaN, ReLU passes the gradient and LeakyReLU its slope times that, as PyTorch's do."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1.0], [nan], [inf], [-inf], [-2.0]], dtype=dtype)
    parameters = [torch.ones(1, 1), torch.zeros(1), 2 * torch.ones(1, 1), torch.zeros(1)]
    parameters, grad = [each.to(dtype) for each in parameters], torch.arange(1.0, 6, dtype=dtype)[:, None]
    for ours, theirs in zip(everything(called, x, parameters, grad, slope),
                            everything(formulas, x, parameters, grad, slope), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    wide, parameters, grad = make((40, 33, 20), 115, dtype)
    grad[7, 3] = nan
    for ours, theirs in zip(everything(called, wide, parameters, grad, slope),
                            everything(formulas, wide, parameters, grad, slope), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.fixture
def kernels():
    """The native library's."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("fastflow::mlp", "CPU"):
        pytest.skip("the native library is not built here")


@DTYPES
@pytest.mark.parametrize("widths", [(17, 33, 1, 20), (33, 100, 31, 3), (32, 64, 32)], ids=str)
def test_what_lies_between_the_activations_is_never_a_number(kernels, widths, dtype):
    x, parameters, grad = make(widths, 130, dtype)
    _, hidden = _forward.dispatch(x, parameters, 0.01, True)
    expected = _backward.dispatch(grad, x, hidden, parameters[::2], 0.01, True)
    spoilt, first = torch.full_like(hidden, float("nan")), 0
    for width in widths[1:-1]:
        spoilt[:, first : first + width] = hidden[:, first : first + width]
        first += -(-width // 32) * 32
    found = _backward.dispatch(grad, x, spoilt, parameters[::2], 0.01, True)
    for ours, theirs in zip([found[0], *found[1]], [expected[0], *expected[1]], strict=True):
        assert torch.equal(ours, theirs)


@DTYPES
def test_activations_are_those_of_the_formulas(kernels, dtype):
    widths = (17, 33, 64, 20)
    x, parameters, _ = make(widths, 115, dtype)
    _, hidden = _forward.dispatch(x, parameters, 0.01, True)
    first, h = 0, x
    for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        h = F.leaky_relu(F.linear(h, weight, bias), 0.01)
        torch.testing.assert_close(hidden[:, first : first + len(bias)], h, rtol=1e-4, atol=1e-5)
        first += -(-len(bias) // 32) * 32


@pytest.mark.parametrize("widths", [(1, 1), (33, 100, 31)], ids=str)
def test_many_threads_give_the_same_bits(kernels, widths):
    x, parameters, grad = make(widths, 3001)
    assert_same_bits_on_any_threads(lambda: everything(called, x, parameters, grad, 0.01))


def test_same_bits_again(kernels):
    x, parameters, grad = make((33, 100, 31), 300)
    first, again = (everything(called, x, parameters, grad, 0.01) for _ in range(2))
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("widths", [(6, 3), (6, 33, 8, 3)], ids=str)
def test_opcheck(widths, rows):
    x, parameters, grad = make(widths, rows)
    torch.library.opcheck(_forward.dispatch, (x, parameters, 0.01, False))
    # The places after the activations hold what was there, which no two calls need have alike.
    torch.library.opcheck(_forward.dispatch, (x, parameters, 0.01, True),
                          test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
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


@without_asan
def test_changing_what_backward_needs_is_an_error(kernels):
    x, parameters, grad = make((6, 33, 3), 20)
    parameters[0].requires_grad_()
    for changed in (x, parameters[2]):
        out = mlp(x, parameters)
        changed.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward(grad)


@pytest.mark.parametrize("level", ["", "avx2", "baseline"])
def test_other_instruction_sets(level):
    """The mode is fixed when the library is loaded: another process runs this file at that level. Its malloc fills
    memory with large numbers, which would show in any result that they were read for."""
    if os.environ.get("FASTFLOW_CPU_ISA") or SANITIZED:
        pytest.skip("this process is for one level, or for a sanitizer")
    if _library.instruction_set() == level:
        pytest.skip(f"the CPU's best level is {level}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__,
               "-k", "cpu and (three_way or layouts or nan)"]
    environment = {**os.environ, "MALLOC_PERTURB_": "1"} | ({"FASTFLOW_CPU_ISA": level} if level else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


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
