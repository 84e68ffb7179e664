"""Fixed permutations of the channels: values, gradients that are selections, refusals."""

import pytest
import torch
from bijections import assert_inverts, assert_log_det
from needs import without_asan
from oracles import LAYOUTS, relayout
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from fastflow.nn import FlowSequential, Permutation
from fastflow.ops import permute
from fastflow.ops.permute import _columns

ORDER = torch.tensor([2, 0, 3, 1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5), (2, 4, 3, 5), (1, 4, 2, 1, 3)], ids=str)
def test_values(shape, dtype, layout):
    x = torch.arange(torch.Size(shape).numel()).view(shape).to(dtype)
    if dtype.is_floating_point:
        x = relayout(x, layout)
    for order in (ORDER, ORDER.int()):
        z, back = permute(x, order), permute(x, order, inverse=True)
        for place, channel in enumerate(ORDER.tolist()):
            assert torch.equal(z[:, place], x[:, channel])
            assert torch.equal(back[:, channel], x[:, place])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 32, 33, 64, 100, 255, 256, 257, 300])
def test_matrices(columns, dtype, layout):
    for rows in (0, 1, 5, 700):
        x, order = relayout(torch.randn(rows, columns, dtype=dtype), layout), torch.randperm(columns)
        expected = torch.stack([x[:, channel] for channel in order.tolist()], 1)
        for given in (order, order.int(), torch.stack([order, order], 1)[:, 0]):
            found = permute(x, given)
            assert torch.equal(found, expected)
            assert found.is_contiguous()
        assert torch.equal(permute(found, order, inverse=True), x)


@without_asan
def test_the_kernel_looks_at_the_order():
    x = torch.randn(3, 4)
    high, low = torch.tensor([0, 1, 2, 4]), torch.tensor([0, 1, -1, 2])
    for wrong in (high, low, torch.arange(3), ORDER.short(), ORDER.bool()):
        with pytest.raises((RuntimeError, IndexError)):
            _columns.dispatch(x, wrong)
    assert torch.equal(_columns.dispatch(x, torch.tensor([3, 3, 0, 1])), x[:, [3, 3, 0, 1]])  # reads, so it may repeat


def test_opcheck_of_the_kernel():
    opcheck(_columns.dispatch, (torch.randn(5, 4), ORDER), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("shape", [(5, 4), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("inverse", [False, True])
def test_gradients(inverse, shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: permute(x, ORDER, inverse=inverse), (x,))
    assert gradgradcheck(lambda x: permute(x, ORDER, inverse=inverse) ** 2, (x,))


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_the_gradient_is_a_selection():
    x = torch.randn(2, 4, requires_grad=True)
    z, weights = permute(x, ORDER), torch.randn(2, 4)
    with Names() as called:
        (grad,) = torch.autograd.grad(z, x, weights)
    assert torch.equal(grad, permute(weights, ORDER, inverse=True))
    assert {"index_select", "permute_columns"} & set(called.names)
    assert not any("index_add" in name or "scatter" in name for name in called.names)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)], ids=str)
def test_compile_and_torch_func(shape):
    torch.compiler.reset()
    x = torch.randn(shape)
    compiled = torch.compile(permute, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad((compiled(leaf, ORDER) * x).sum(), leaf)
    assert torch.equal(grad, permute(x, ORDER, inverse=True))
    rows = torch.vmap(torch.func.grad(lambda row: (permute(row[None], ORDER)[0] ** 2).sum()))(x)
    assert torch.allclose(rows, 2 * x)


@pytest.mark.parametrize("layer", [Permutation([2, 0, 3, 1]), Permutation.reverse(4), Permutation.random(4, 7)])
def test_layer(layer):
    assert_inverts(layer, torch.randn(3, 4, 2, 5))
    assert_inverts(layer, torch.randn(0, 4))
    assert_log_det(layer, torch.randn(2, 4, 2, dtype=torch.float64))
    assert layer(torch.randn(3, 4))[1].tolist() == [0, 0, 0]


def test_orders():
    x = torch.randn(2, 5)
    assert torch.equal(Permutation.reverse(5)(x)[0], x.flip(1))
    drawn = Permutation.random(100, 3).permutation
    assert torch.equal(drawn, Permutation.random(100, 3).permutation)
    assert not torch.equal(drawn, Permutation.random(100, 4).permutation)
    assert sorted(drawn.tolist()) == list(range(100))


def test_the_order_is_saved_with_the_layer():
    saved, loaded = Permutation.random(6, 1), Permutation.reverse(6)
    loaded.load_state_dict(saved.state_dict())
    x = torch.randn(2, 6)
    assert torch.equal(loaded(x)[0], saved(x)[0])
    assert not list(loaded.parameters())


def test_bad_arguments():
    x = torch.zeros(2, 4)
    with pytest.raises(TypeError, match="permute: x is NoneType"):
        permute(None, ORDER)
    with pytest.raises(ValueError, match="permute: x has shape"):
        permute(torch.zeros(4), ORDER)
    with pytest.raises(TypeError, match="permute: permutation is list"):
        permute(x, [2, 0, 3, 1])
    with pytest.raises(TypeError, match=r"permute: permutation has dtype torch\.float32, expected int64 or int32"):
        permute(x, ORDER.float())
    with pytest.raises(ValueError, match=r"permute: permutation has shape \(3,\), expected \(4,\) to match"):
        permute(x, torch.arange(3))
    with pytest.raises(ValueError, match="permute: permutation has the value 1 more than once, expected each of 0"):
        permute(x, torch.tensor([0, 1, 1, 2]))
    with pytest.raises(ValueError, match="permute: permutation has the value 4, expected each of 0 to 3 once"):
        permute(x, torch.tensor([1, 2, 3, 4]))
    with pytest.raises(ValueError, match="Permutation: permutation has the value -1, expected each of 0 to 1 once"):
        Permutation([0, -1])
    with pytest.raises(ValueError, match=r"Permutation: permutation has shape \(1, 2\), expected \[C\]"):
        Permutation([[0, 1]])
    with pytest.raises(TypeError, match="Permutation: permutation has dtype"):
        Permutation([0.0, 1.0])
    with pytest.raises(ValueError, match=r"layer 0 \(Permutation\) does not fit samples of shape \(3,\): it permutes"):
        FlowSequential([Permutation.reverse(4)], (3,))
