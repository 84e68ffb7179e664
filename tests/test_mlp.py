"""Multilayer perceptron: outputs and gradients, layouts, padding, extremes, threads, on every backend of the CPU."""

import os
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from backends import cpu_backends
from hypothesis import HealthCheck, given, settings
from mlp_cases import called, everything, formulas, make
from needs import SANITIZED, without_asan
from oracles import LAYOUTS, assert_same_bits_on_any_threads, assert_three_way, relayout
from torch import Tensor

from fastflow import _library
from fastflow.ops import mlp
from fastflow.ops.mlp import _backward, _forward

backend = cpu_backends(_forward, _backward)
SLOPES = [0.0, 0.01, 1.0]
WIDTHS = [(1, 1), (3, 17), (17, 31, 1), (32, 64, 32), (33, 100, 31, 3), (64, 100, 100, 64), (3, 256, 270, 33),
          (100, 32, 17, 3, 1, 64)]  # fmt: skip
ROWS = [0, 1, 13, 14, 15, 112, 113, 300]


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
