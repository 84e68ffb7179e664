"""Linear maps and permutations of zuko, fused, against the originals."""

import copy

import pytest
import torch
from agreement import assert_agrees, assert_keeps
from oracles import LAYOUTS, relayout
from peers import zuko

from fastflow.fusion import fuse
from fastflow.fusion.swap import survey
from fastflow.fusion.zuko import unconditional

D = 5
t, Unconditional = zuko.transforms, zuko.lazy.UnconditionalTransform


def lu(features=D, **options):
    factors = torch.eye(features) + 0.5 * features**-0.5 * torch.randn(features, features)
    factors[0, 0] = -0.7
    return Unconditional(t.LULinearTransform, factors, **options)


def rotation(features=D, **options):
    return Unconditional(t.RotationTransform, A=torch.randn(features, features), **options)


def permutation(features=D, **options):
    return Unconditional(t.PermutationTransform, torch.randperm(features), buffer=True, **options)


KINDS = (lu, rotation, permutation)


@pytest.fixture(params=["matrix", "solves"], autouse=True)
def way(request, monkeypatch):
    """How the inverse of an LULinearTransform is found, whatever the number of rows."""
    monkeypatch.setattr(unconditional, "pays", lambda x, inverse: request.param == "matrix")


def forward(layer, x):
    return layer().call_and_ladj(x)


def inverse(layer, x):
    return layer().inv.call_and_ladj(x)


def one_by_one(layer, x):
    transform = layer()
    z, y = transform(x), transform.inv(x)
    return z, transform.log_abs_det_jacobian(x, z), y, transform.inv.log_abs_det_jacobian(x, y)


CALLS = (forward, inverse, one_by_one)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", [(17,), (1,), (0,), (), (3, 4), (2, 1, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("make", KINDS)
def test_agrees(make, shape, call):
    assert_agrees(make(), call, torch.randn(*shape, D))


@pytest.mark.parametrize("call", [forward, inverse])
@pytest.mark.parametrize("features", [3, 64, 65, 100])
@pytest.mark.parametrize("make", KINDS)
def test_any_number_of_features(make, features, call):
    assert_agrees(make(features), call, torch.randn(40, features))


@pytest.mark.parametrize("call", [forward, inverse])
@pytest.mark.parametrize("make", KINDS)
def test_one_feature(make, call):
    original, x = make(1), torch.randn(7, 1)
    torch.testing.assert_close(call(fuse(copy.deepcopy(original)), x), call(original, x))


@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each != "channels_last"])
@pytest.mark.parametrize("make", KINDS)
def test_layouts(make, layout):
    assert_agrees(make(), forward, relayout(torch.randn(17, D), layout))
    assert_agrees(make(), inverse, relayout(torch.randn(4, 3, D), layout))


@pytest.mark.parametrize("make", [lu, rotation])
def test_parameters_that_are_buffers(make):
    assert_agrees(make(buffer=True), forward, torch.randn(17, D))


@pytest.mark.parametrize("make", KINDS)
def test_keeps_everything_else(make):
    assert_keeps(make(), forward, torch.randn(17, D))


@pytest.mark.parametrize("make", KINDS)
def test_keeps_what_is_known_of_a_transform(make):
    original, x = make(), torch.randn(3, D)
    theirs, ours = original(), fuse(copy.deepcopy(original))()
    for mine, other in ((ours, theirs), (ours.inv, theirs.inv)):
        assert isinstance(mine, type(other))
        assert repr(mine) == repr(other)
        assert mine.domain is other.domain
        assert mine.codomain is other.codomain
        assert mine.bijective == other.bijective
        assert mine.forward_shape(x.shape) == x.shape
    assert ours.inv is ours.inv
    assert ours.inv.inv is ours
    for name in ("L", "U", "R", "order"):
        assert hasattr(ours, name) == hasattr(theirs, name)
        assert torch.equal(getattr(ours, name, x), getattr(theirs, name, x))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("make", KINDS)
def test_transforms_of_functions(make, call):
    original = make()
    fused, x = fuse(copy.deepcopy(original)), torch.randn(6, D)
    tangent = torch.randn_like(x)
    for transformed in (lambda layer: torch.func.vmap(lambda row: call(layer, row))(x),
                        lambda layer: torch.func.jvp(lambda x: call(layer, x), (x,), (tangent,)),
                        lambda layer: torch.func.vmap(torch.func.jacrev(lambda row: call(layer, row)))(x)):
        torch.testing.assert_close(transformed(fused), transformed(original))


@pytest.mark.parametrize("make", [lu, rotation])
def test_autocast_leaves_float32_alone(make):
    layer, x = fuse(make()), torch.randn(17, D)
    expected = (*forward(layer, x), *inverse(layer, x))
    with torch.autocast("cpu", torch.bfloat16):
        results = (*forward(layer, x), *inverse(layer, x))
    for mine, other in zip(results, expected, strict=True):
        assert torch.equal(mine, other)
        assert mine.dtype == torch.float32


@pytest.mark.parametrize("call", [forward, inverse])
@pytest.mark.parametrize("make", KINDS)
def test_second_derivatives(make, call):
    layer, x = fuse(make(3)).double(), torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: call(layer, x)[0], (x, *layer.parameters()))


def test_a_loaded_order_is_the_one_that_is_used():
    first, second, x = permutation(), permutation(), torch.randn(3, D)
    fused = fuse(first)
    fused.load_state_dict(second.state_dict())
    assert torch.equal(fused()(x), second()(x))
    assert torch.equal(fused().inv(x), second().inv(x))


@pytest.mark.parametrize("make", KINDS)
def test_wrong_features(make):
    transform = fuse(make())()
    for direction in (transform, transform.inv):
        with pytest.raises(ValueError, match=r"Transform: x has shape \(3, 6\), expected \(\.\.\., 5\)"):
            direction(torch.randn(3, 6))


class _Lookalike(t.RotationTransform):
    def _call(self, x):
        return super()._call(-x)


@pytest.mark.parametrize(("arguments", "options", "reason"), [
    ((t.ExpTransform,), {}, "its transform is ExpTransform"),
    ((_Lookalike, torch.eye(D)), {}, "its transform is _Lookalike"),
    ((t.LULinearTransform, torch.randn(3, D, D)), {}, "its matrix has shape (3, 5, 5), expected one square matrix"),
    ((t.RotationTransform, torch.randn(2, D, D)), {}, "its matrix has shape (2, 5, 5), expected one square matrix"),
    ((t.LULinearTransform, torch.eye(D)), {"cache_size": 1}, "its transform has other arguments than a matrix")])
def test_refusals(arguments, options, reason):
    layer = Unconditional(*arguments, **options)
    assert [each.reason for each in survey(fuse(layer))] == [reason]
    assert type(layer) is Unconditional


@pytest.mark.parametrize("order", [[0, 1, 1], [-1, 0, 1], [1, 2, 3], [[0, 1], [1, 0]]])
def test_what_is_no_permutation_is_left(order):
    layer = Unconditional(t.PermutationTransform, torch.tensor(order), buffer=True)
    assert [each.reason for each in survey(layer)] == ["its order is not that of a permutation"]
