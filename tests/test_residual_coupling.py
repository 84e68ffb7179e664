"""The coupling with a residual conditioner for pairs (row, class): values, gradients, layouts, threads."""

from typing import NamedTuple

import pytest
import torch
from backends import cpu_backends
from needs import without_asan
from oracles import LAYOUTS, assert_same_bits_on_any_threads, assert_three_way, relayout
from torch import Tensor

from fastflow._backend import backend as forced_backend
from fastflow._backend import forced
from fastflow.ops.residual_coupling import _hidden, _pairs, backward_op, forward_op, reference
from fastflow.ops.scale_map import KINDS

backend = cpu_backends(forward_op, backward_op)
SETTINGS = {  # of each kind, but the one without a scale: bias, eps, clamp
    "exp": [(0.0, 0.0, 1.0)], "sigmoid": [(2.0, 0.0, 1.0), (2.0, 1e-3, 1.0)], "softplus": [(0.5, 1e-3, 1.0)],
    "tanh": [(0.0, 0.0, 1.0)], "clamp_atan": [(0.0, 0.0, 1.9)], "clamp_tanh": [(0.0, 0.0, 1.9)],
    "clamp_sigmoid": [(0.0, 0.0, 1.9)], "soft_clip": [(0.0, 0.0, 1.9)], "inverse_sigmoid": [(2.0, 0.0, 1.0)],
}  # fmt: skip
MAPS = [(KINDS.index(kind), *numbers) for kind, given in SETTINGS.items() for numbers in given]
TANH = (KINDS.index("tanh"), 0.0, 0.0, 1.0, False)


class Shape(NamedTuple):
    rows: int
    classes: int
    passive: int
    active: int
    hidden: int
    blocks: int


SHAPES = [Shape(5, 3, 5, 7, 9, 0), Shape(9, 1, 1, 1, 1, 1), Shape(13, 4, 33, 17, 35, 2), Shape(2, 60, 16, 32, 64, 3)]
# passive_shared, active_shared, pairs
OPERANDS = [(True, True, None), (True, False, None), (False, True, None), (False, False, None),
            (True, True, "some"), (False, False, "some"), (True, False, "none")]  # fmt: skip


class Call(NamedTuple):
    passive: Tensor
    active: Tensor
    log_det: Tensor | None
    table: Tensor
    weights: list[Tensor]
    pairs: Tensor | None
    passive_shared: bool
    active_shared: bool

    def to(self, dtype: torch.dtype, products: torch.dtype | None = None) -> "Call":
        weights = [weight.to(products or dtype) if weight.dim() == 2 else weight.to(dtype) for weight in self.weights]
        dense = (each.to(dtype) for each in self[:4])
        return Call(*dense, weights, *self[5:])

    def backward(self, z: Tensor, settings: tuple, grad_z: Tensor, grad_log_det: Tensor) -> tuple:
        """The arguments of the backward op."""
        return (self.passive, z, self.table, self.weights, self.pairs, self.passive_shared, *settings, grad_z,
                grad_log_det)


def _away(*shape: int) -> Tensor:
    return (2 + torch.rand(shape)) * torch.randn(shape).sign()


def make(shape: Shape, shared: tuple[bool, bool, str | None] = (True, True, None)) -> Call:
    """In float64, of values that bfloat16 has, with every rectifier's input further from 0 than rounding moves it."""
    passive_shared, active_shared, chosen = shared
    rows, classes, passive, active, hidden, blocks = shape
    pairs = None
    if chosen is not None:
        pairs = torch.randint(rows * classes, (2 * rows * classes // 3 if chosen == "some" else 0,)).sort().values
    results = rows * classes if pairs is None else pairs.shape[0]

    def matrix(outputs: int, inputs: int, size: float) -> Tensor:
        return torch.randn(outputs, inputs) * size / inputs**0.5

    weights = [matrix(hidden, passive, 0.2)]
    for _ in range(blocks):
        weights += [matrix(hidden, hidden, 0.1), _away(hidden), matrix(hidden, hidden, 0.05), torch.randn(hidden) / 16]
    weights += [torch.randn(hidden) / 8, 0.5 + torch.rand(hidden), matrix(2 * active, hidden, 0.5),
                torch.randn(2 * active) / 4]
    call = Call(torch.randn(rows if passive_shared else results, passive),
                torch.randn(rows if active_shared else results, active), torch.randn(results), _away(classes, hidden),
                weights, pairs, passive_shared, active_shared)
    call = call.to(torch.bfloat16).to(torch.float64)
    if results:
        inner = _hidden(call.passive, call.table, call.weights, *_pairs(call.table, pairs, rows), passive_shared)
        assert min(float(each.abs().min()) for each in inner) > 0.05
    return call


def run_forward(call: Call, settings: tuple) -> tuple[Tensor, Tensor]:
    return forward_op.kernel(forced(), "cpu")(*call, *settings)


def run_backward(call: Call, z: Tensor, settings: tuple, *grads: Tensor) -> list[Tensor]:
    *dense, weights = backward_op.kernel(forced(), "cpu")(*call.backward(z, settings, *grads))
    return [*dense, *weights]


@pytest.mark.parametrize("shift_first", [False, True])
@pytest.mark.parametrize("numbers", MAPS, ids=lambda numbers: f"{KINDS[numbers[0]]}-{numbers[2]}")
def test_backward_is_the_gradient_and_undoes_forward(backend, numbers, shift_first):
    settings = (*numbers, shift_first)
    for shape in SHAPES:
        for shared in OPERANDS:
            call = make(shape, shared)
            leaves = [each.clone().requires_grad_() for each in (call.passive, call.active, call.table, *call.weights)]
            passive, active, table, *weights = leaves
            expected = reference(passive, active, call.log_det, table, weights, *call[5:], *settings)
            z, log_det = run_forward(call, settings)
            torch.testing.assert_close((z, log_det), expected, rtol=1e-11, atol=1e-11)
            grads = torch.randn_like(z), torch.randn_like(log_det)
            grad_passive, grad_active, *others = torch.autograd.grad(expected, leaves, grads)
            found_active, own_grad_active, own_grad_passive, *own = run_backward(call, z, settings, *grads)
            row, _ = _pairs(table, call.pairs, shape.rows)

            def summed(own: Tensor, shared: bool, row: Tensor = row, rows: int = shape.rows) -> Tensor:
                return own.new_zeros(rows, own.shape[1]).index_add_(0, row, own) if shared else own

            of_result = call.active[row] if call.active_shared else call.active
            torch.testing.assert_close(found_active, of_result, rtol=1e-9, atol=1e-9)
            own = [summed(own_grad_active, call.active_shared), summed(own_grad_passive, call.passive_shared), *own]
            torch.testing.assert_close(own, [grad_active, grad_passive, *others], rtol=1e-9, atol=1e-9)


def terms_of_sums(call: Call, z: Tensor, settings: tuple, grad_z: Tensor, grad_log_det: Tensor) -> list[Tensor]:
    """Sums of absolute values of what the gradients of table and weights add up, from a few results at a time."""
    pairs = torch.arange(z.shape[0]) if call.pairs is None else call.pairs
    step = 1 + z.shape[0] // 16
    total = [torch.zeros_like(each) for each in (call.table, *call.weights)]
    for first in range(0, z.shape[0], step):
        few = slice(first, first + step)
        part = call._replace(pairs=pairs[few], passive=call.passive if call.passive_shared else call.passive[few])
        *_, table, weights = backward_op.reference(*part.backward(z[few], settings, grad_z[few], grad_log_det[few]))
        for sizes, grad in zip(total, [table, *weights], strict=True):
            sizes += grad.abs()
    return total


def check(call: Call, products: torch.dtype, settings: tuple) -> None:
    state = torch.promote_types(products, torch.float32)
    z, _ = reference(*call, *settings)
    given = z.to(state), torch.randn_like(z).to(state), torch.randn(z.shape[0], dtype=state)

    def everything(call: Call, forward, backward) -> list[Tensor]:
        z, *grads = (each.to(call.table.dtype) for each in given)
        *dense, weights = backward(*call.backward(z, settings, *grads))
        return [*forward(*call, *settings), *dense, *weights]

    truth = everything(call, forward_op.reference, backward_op.reference)
    own = everything(call.to(state, products), forward_op.kernel(forced(), "cpu"), backward_op.kernel(forced(), "cpu"))
    if products == torch.float64:  # eager's rounding is float32's, 2^-29 times as large, and the truth has as much
        single = everything(call.to(torch.float32), forward_op.reference, backward_op.reference)
        eager = [exact + (rough.double() - exact) * 2.0**-28 for rough, exact in zip(single, truth, strict=True)]
    else:
        eager = everything(call.to(state, products), forward_op.reference, backward_op.reference)
    terms = [None] * 5 + terms_of_sums(call, given[0].double(), settings, *(each.double() for each in given[1:]))
    for place, (mine, theirs, exact, sizes) in enumerate(zip(own, eager, truth, terms, strict=True)):
        assert mine.dtype == state
        assert_three_way(mine, theirs, exact, products, name=f"result {place}", terms=sizes)


@pytest.fixture
def kernels():
    """The native library's."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("fastflow::residual_coupling", "CPU"):
        pytest.skip("the native library is not built here")
    with forced_backend("cpu"):
        yield


PRODUCTS = pytest.mark.parametrize("products", [torch.float64, torch.float32, torch.bfloat16], ids=str)


@PRODUCTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_three_way(kernels, shape, products):
    for numbers in MAPS:
        check(make(shape), products, (*numbers, False))


@PRODUCTS
@pytest.mark.parametrize("shared", OPERANDS)
def test_three_way_of_every_operand(kernels, shared, products):
    check(make(SHAPES[2], shared), products, (*MAPS[2], True))


@PRODUCTS
def test_many_features_and_more_results_than_backward_holds_at_once(kernels, products):
    check(make(Shape(250, 4, 98, 98, 290, 3)), products, TANH)


@PRODUCTS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout, products):
    call = make(SHAPES[2], (True, False, "some")).to(torch.promote_types(products, torch.float32), products)
    log_det = relayout(call.log_det, "strided")
    other = Call(relayout(call.passive, layout), relayout(call.active, layout), log_det, relayout(call.table, layout),
                 [relayout(each, layout if each.dim() == 2 else "strided") for each in call.weights],
                 relayout(call.pairs, "strided"), *call[6:])
    z, log_det = run_forward(call, TANH)
    found = run_forward(other, TANH)
    grads = torch.randn_like(z), torch.randn_like(log_det)
    expected = [z, log_det, *run_backward(call, z, TANH, *grads)]
    strided = relayout(z, layout), TANH, relayout(grads[0], layout), relayout(grads[1], "strided")
    for mine, theirs in zip([*found, *run_backward(other, *strided)], expected, strict=True):
        assert torch.equal(mine, theirs) if backend == "cpu" else torch.allclose(mine, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("shared", [(True, True, None), (False, False, None), (True, True, "none")])
def test_no_results(backend, shared):
    rows = 0 if shared[2] is None else 3
    call = make(Shape(rows, 4, 6, 5, 9, 1), shared)
    z, log_det = run_forward(call, TANH)
    assert (z.shape, log_det.shape) == ((0, 5), (0,))
    active, grad_active, grad_passive, *others = run_backward(call, z, TANH, z, log_det)
    assert (active.shape, grad_active.shape, grad_passive.shape) == ((0, 5), (0, 5), (0, 6))
    for grad, like in zip(others, [call.table, *call.weights], strict=True):
        assert torch.equal(grad, torch.zeros_like(like))


def test_without_log_det(backend):
    call = make(SHAPES[2]).to(torch.float32)
    z, own = run_forward(call._replace(log_det=None), TANH)
    again, total = run_forward(call, TANH)
    assert torch.equal(z, again)
    assert torch.equal(total, call.log_det + own)


def test_results_do_not_see_each_other(backend):
    call = make(SHAPES[2]).to(torch.float32)
    spoilt = call.passive.clone()
    spoilt[5] = float("nan")
    expected, found = run_forward(call, TANH), run_forward(call._replace(passive=spoilt), TANH)
    of_row = torch.arange(13 * 4) // 4 == 5
    for mine, clean in zip(found, expected, strict=True):
        assert mine[of_row].isnan().all()
        assert torch.equal(mine[~of_row], clean[~of_row])


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16], ids=str)
def test_many_threads_give_the_same_bits(kernels, products):
    call = make(Shape(150, 7, 30, 21, 290, 3), (True, False, None)).to(torch.float32, products)
    z, log_det = forward_op.dispatch(*call, *TANH)
    grads = torch.randn_like(z), torch.randn_like(log_det)

    def compute() -> list[Tensor]:
        *dense, weights = backward_op.dispatch(*call.backward(z, TANH, *grads))
        return [*forward_op.dispatch(*call, *TANH), *dense, *weights]

    assert_same_bits_on_any_threads(compute)


@pytest.mark.parametrize("shared", OPERANDS)
def test_opcheck(shared):
    for products in (torch.float32, torch.bfloat16):
        call = make(SHAPES[2], shared).to(torch.float32, products)
        torch.library.opcheck(forward_op.dispatch, (*call, *TANH))
        z, log_det = forward_op.dispatch(*call, *TANH)
        torch.library.opcheck(backward_op.dispatch, call.backward(z, TANH, torch.randn_like(z), log_det))


@without_asan
def test_refuses_matrices_of_another_dtype(kernels):
    with pytest.raises(RuntimeError, match="residual_coupling: the weights' matrices have another dtype than table"):
        forward_op.dispatch(*make(SHAPES[0]).to(torch.float32, torch.float64), *TANH)
