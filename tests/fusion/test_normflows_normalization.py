"""Constant affine maps and ActNorm of normflows, fused, against the originals."""

import copy

import pytest
import torch
from agreement import assert_agrees, assert_keeps, perturbed
from bijection_checks import (
    BOTH,
    assert_compiles,
    assert_float32_under_autocast,
    assert_transforms,
    forward,
    inverse,
)
from oracles import relayout
from peers import normflows

from fastflow.fusion import fuse

AffineConstFlow, ActNorm = normflows.flows.AffineConstFlow, normflows.flows.ActNorm
CCAffineConst = normflows.flows.CCAffineConst
SHAPES = [((6,), (6,)), ((4, 1, 1), (4, 3, 2)), ((4, 3, 2), (4, 3, 2)), ((1, 3, 1), (4, 3, 2)), ((1,), (6,)),
          ((4, 1, 1), (4, 64, 64))]  # the last is large enough for the kernel


def constant(size, **options):
    return perturbed(AffineConstFlow(size, **options))


def act_norm(size, ready=True):
    layer = perturbed(ActNorm(size))
    layer.data_dep_init_done = torch.tensor(float(ready))
    return layer


def class_constant(size, classes=3):
    return perturbed(CCAffineConst(size, classes))


def one_hot(rows, classes=3):
    return torch.eye(classes)[torch.arange(rows) % classes]


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("make", [constant, act_norm])
@pytest.mark.parametrize(("size", "shape"), SHAPES)
def test_agrees(size, shape, make, call):
    assert_agrees(make(size), call, torch.randn(17, *shape))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("options", [{"scale": False}, {"shift": False}])
def test_without_scale_or_shift(options, call):
    assert_agrees(constant((6,), **options), call, torch.randn(17, 6))
    assert_agrees(constant((4, 1, 1), **options), call, torch.randn(17, 4, 64, 32))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows, call):
    for size, shape in SHAPES[:4]:
        assert_agrees(constant(size), call, torch.randn(rows, *shape))
        assert_agrees(class_constant(size), call, torch.randn(rows, *shape), one_hot(rows))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize(("size", "shape"), SHAPES[:5])
def test_classes(size, shape, call):
    assert_agrees(class_constant(size), call, torch.randn(17, *shape), one_hot(17))
    assert_agrees(class_constant(size), call, torch.randn(17, *shape), torch.rand(17, 3))


@pytest.mark.parametrize("layout", ["strided", "transposed", "channels_last"])
def test_layouts(layout):
    assert_agrees(constant((4, 1, 1)), inverse, relayout(torch.randn(17, 4, 64, 32), layout))
    assert_agrees(constant((6,)), inverse, relayout(torch.randn(17, 6), layout))


def test_keeps():
    assert_keeps(constant((4, 1, 1)), inverse, torch.randn(5, 4, 3, 2))
    assert_keeps(constant((6,), scale=False), inverse, torch.randn(5, 6))
    assert_keeps(act_norm((6,)), forward, torch.randn(5, 6))
    assert_keeps(class_constant((6,)), inverse, torch.randn(5, 6), one_hot(5))


@pytest.mark.parametrize("call", BOTH)
def test_transforms_compile_and_autocast(call):
    for original, x in ((constant((4, 1, 1)), torch.randn(3, 4, 3, 2)), (act_norm((6,)), torch.randn(3, 6))):
        assert_transforms(original, call, x)
        assert_compiles(original, call, x)
        assert_float32_under_autocast(original, call, x)


def test_classes_compile_and_keep_float32_under_autocast():
    for size, shape in SHAPES[:2]:
        assert_compiles(class_constant(size), inverse, torch.randn(5, *shape), one_hot(5))
        assert_float32_under_autocast(class_constant(size), inverse, torch.randn(5, *shape), torch.rand(5, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("call", BOTH)
def test_the_first_batch_initialises(call, training, dtype):
    for size, shape in SHAPES[:2]:
        original = ActNorm(size).to(dtype).train(training)
        fused = fuse(copy.deepcopy(original))
        for _ in range(2):
            x = 3 * torch.randn(17, *shape, dtype=dtype) + 2
            torch.testing.assert_close(call(fused, x), call(original, x))
        mine, theirs = fused.state_dict(), original.state_dict()
        assert list(mine) == list(theirs)
        torch.testing.assert_close(mine, {name: value.to(dtype) for name, value in theirs.items()})
        assert fused.data_dep_init_done.dtype == dtype


@pytest.mark.parametrize("call", BOTH)
def test_a_compiled_first_batch_initialises(call):
    torch.compiler.reset()
    original = ActNorm((6,))
    fused = fuse(copy.deepcopy(original))
    compiled = torch.compile(lambda x: call(fused, x), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = 3 * torch.randn(17, 6) + 2
        torch.testing.assert_close(compiled(x), call(original, x))
    assert fused.data_dep_init_done == 1


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("call", BOTH)
def test_too_small_a_batch_leaves_it_uninitialised(call, rows):
    fused = fuse(act_norm((6,), ready=False))
    expected = call(constant_like(fused), torch.ones(rows, 6))
    with pytest.warns(UserWarning, match="ActNorm: x has fewer than 2 values a channel, expected more"):
        found = call(fused, torch.ones(rows, 6))
    torch.testing.assert_close(found, expected)
    assert fused.data_dep_init_done == 0
    call(fused, 5 * torch.randn(17, 6))
    assert fused.data_dep_init_done == 1
    torch.testing.assert_close(fused.s.abs(), torch.full((1, 6), 5.0).log(), atol=0.5, rtol=0)


def constant_like(layer):
    other = AffineConstFlow(layer.s.shape[1:])
    other.load_state_dict({name: value for name, value in layer.state_dict().items() if name in "st"})
    return other


def test_a_batch_of_one_image_initialises():
    original = ActNorm((4, 1, 1))
    fused, x = fuse(copy.deepcopy(original)), torch.randn(1, 4, 3, 2)
    torch.testing.assert_close(fused.inverse(x), original.inverse(x))


def test_what_is_known_of_it_is_taken_up():
    """By load_state_dict, in either direction, and where the flag was set by hand."""
    x, ready, fresh = torch.randn(17, 6), act_norm((6,)), ActNorm((6,))
    fused = fuse(copy.deepcopy(fresh))
    fused.load_state_dict(ready.state_dict())
    torch.testing.assert_close(fused.inverse(x), ready.inverse(x))
    fused.load_state_dict(fresh.state_dict())
    torch.testing.assert_close(fused.inverse(x), fresh.inverse(x))
    by_hand = fuse(copy.deepcopy(act_norm((6,), ready=False)))
    by_hand.data_dep_init_done.fill_(1)
    torch.testing.assert_close(by_hand.inverse(x), constant_like(by_hand).inverse(x))


def test_functions_are_not_transformed_before_it_is_initialised():
    fused, x = fuse(ActNorm((6,))), torch.randn(5, 6)
    with pytest.raises(RuntimeError, match=r"expected a first call outside of torch\.func"):
        torch.func.jvp(fused.inverse, (x,), (x,))


def test_unusual_shapes_are_the_originals():
    original = constant((3,))
    fused = fuse(copy.deepcopy(original))
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(fused.inverse(x), original.inverse(x), rtol=0, atol=0)
