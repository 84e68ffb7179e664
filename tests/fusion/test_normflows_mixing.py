"""Permutations and linear maps of normflows, fused, against the originals."""

import copy

import pytest
import torch
from agreement import assert_agrees, assert_keeps, compare, outputs_and_gradients, perturbed
from bijection_checks import (
    BOTH,
    assert_compiles,
    assert_float32_under_autocast,
    assert_left,
    assert_transforms,
    forward,
    inverse,
)
from oracles import assert_three_way, relayout
from peers import normflows

from fastflow.fusion import fuse

flows = normflows.flows


def permute(channels, mode="shuffle"):
    return flows.Permute(channels, mode)


def convolution(channels, use_lu=True):
    return perturbed(flows.Invertible1x1Conv(channels, use_lu), 0.2)


def affine(channels, use_lu=True):
    return perturbed(flows.InvertibleAffine(channels, use_lu), 0.2)


def permuted_linear(features):
    layer = flows.LULinearPermute(features, identity_init=False)
    return layer if features == 1 else perturbed(layer)


def assert_samples(original, z):
    """`forward` agrees in float32 by the three-way rule. There the original inverts in float64, so that it does not say
    how exact it is in float64: what is left of z when the results are mapped back does."""
    truth = copy.deepcopy(original).double()
    fused, fused_truth = fuse(copy.deepcopy(original)), fuse(copy.deepcopy(truth))
    results = (outputs_and_gradients(module, forward, (given,))
               for module, given in ((fused, z), (original, z), (truth, z.double())))
    for name, mine, eager, exact in zip(("output", "gradient"), *results, strict=True):
        compare(mine, eager, exact, f"float32 {name}")
    mine, theirs = (truth.inverse(module(z.double())[0])[0] for module in (fused_truth, truth))
    assert_three_way(mine, theirs, z.double(), name="float64 round trip")
    torch.testing.assert_close(*(outputs_and_gradients(module, forward, (z.double(),))[1]
                                 for module in (fused_truth, truth)))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("mode", ["shuffle", "swap"])
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_permute(channels, mode, call):
    for shape in ((channels,), (channels, 3, 2), (channels, 2, 3, 2, 2)):
        for rows in (0, 1, 17):
            assert_agrees(permute(channels, mode), call, torch.randn(rows, *shape))


@pytest.mark.parametrize("mode", ["shuffle", "swap"])
def test_log_det_of_permute_has_the_default_dtype(mode):
    x = torch.randn(3, 4, dtype=torch.float64)
    assert fuse(permute(4, mode))(x)[1].dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert fuse(permute(4, mode))(x)[1].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("mode", ["shuffle", "swap"])
def test_other_numbers_of_channels_are_the_originals(mode):
    assert_agrees(permute(4, mode), forward, torch.randn(3, 6))


@pytest.mark.parametrize("use_lu", [True, False])
@pytest.mark.parametrize(("channels", "pixels"), [(1, 4), (5, 8), (12, 4), (40, 4), (12, 2), (70, 2)])
def test_convolution(channels, pixels, use_lu):
    original, x = convolution(channels, use_lu), torch.randn(32, channels, pixels, pixels)
    assert_agrees(original, inverse, x)
    assert_samples(original, x)


@pytest.mark.parametrize("use_lu", [True, False])
def test_convolution_of_few_rows_and_any_layout(use_lu):
    original = convolution(16, use_lu)
    for rows in (0, 1, 17):
        assert_agrees(original, inverse, torch.randn(rows, 16, 4, 4))
        assert_samples(original, torch.randn(rows, 16, 4, 4))
    for layout in ("strided", "transposed", "channels_last"):
        assert_agrees(original, inverse, relayout(torch.randn(17, 16, 4, 4), layout))
        assert_samples(original, relayout(torch.randn(17, 16, 4, 4), layout))


@pytest.mark.parametrize("use_lu", [True, False])
@pytest.mark.parametrize("channels", [1, 6, 40, 70])
def test_affine(channels, use_lu):
    original = affine(channels, use_lu)
    for x in (torch.randn(32, channels), torch.randn(3, 5, channels), relayout(torch.randn(17, channels), "strided"),
              torch.randn(0, channels)):
        assert_agrees(original, inverse, x)
        assert_samples(original, x)


@pytest.mark.parametrize("use_lu", [True, False])
def test_the_inverse_without_gradients(use_lu):
    """Of few channels it is made in another way than with gradients."""
    original, z = affine(6, use_lu).double(), torch.randn(17, 6, dtype=torch.float64)
    fused = fuse(copy.deepcopy(original))
    with torch.no_grad():
        torch.testing.assert_close(fused(z), original(z))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("features", [1, 6, 40])
def test_permuted_linear(features, call):
    original = permuted_linear(features)
    for rows in (0, 1, 17, 100):
        assert_agrees(original, call, torch.randn(rows, features))
    assert_agrees(original, call, relayout(torch.randn(17, features), "strided"))


MADE = [(permute, "shuffle", (4,)), (permute, "swap", (4, 3, 2)), (convolution, True, (4, 8, 8)),
        (convolution, False, (4, 8, 8)), (affine, True, (4,)), (affine, False, (4,)), (permuted_linear, None, (4,))]


def made(make, option):
    return make(4) if option is None else make(4, option)


@pytest.mark.parametrize(("make", "option", "shape"), MADE)
def test_keeps(make, option, shape):
    assert_keeps(made(make, option), inverse, torch.randn(5, *shape))


@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize(("make", "option", "shape"), MADE)
def test_transforms_and_autocast(make, option, shape, call):
    original = made(make, option)
    assert_transforms(original, call, torch.randn(3, *shape))
    assert_float32_under_autocast(original, call, torch.randn(3, *shape))


@pytest.mark.parametrize(("make", "option", "shape"), [MADE[0], MADE[2], MADE[4], MADE[6]])
def test_compiles(make, option, shape):
    for call in BOTH:
        assert_compiles(made(make, option), call, torch.randn(5, *shape))


def test_permuted_linear_with_the_cache_is_the_originals():
    original, x = permuted_linear(4).eval(), torch.randn(5, 4)
    original.linear.use_cache()
    fused = fuse(copy.deepcopy(original))
    torch.testing.assert_close(fused.inverse(x), original.inverse(x), rtol=0, atol=0)
    assert fused.linear.cache.weight is not None


def test_loaded_permutations_count():
    for make, shape in ((lambda: permute(6), (6,)), (lambda: convolution(6), (6, 8, 8)),
                        (lambda: permuted_linear(6), (6,))):
        one, other = make(), make()
        fused, x = fuse(one), torch.randn(17, *shape)
        fused.load_state_dict(other.state_dict())
        for call in BOTH:
            torch.testing.assert_close(call(fused, x), call(other, x))


def test_what_is_no_permutation_is_left():
    odd, mode, twice, torn = convolution(3), permute(4), permuted_linear(4), permute(4)
    odd.P[0, 0] = 0.5
    mode.mode = "reverse"
    twice.permutation._permutation[0] = twice.permutation._permutation[1]
    torn.inv_perm = torn.inv_perm.roll(1)
    assert_left(odd, "its P is not a permutation")
    assert_left(mode, "its mode is 'reverse'")
    assert_left(twice, "its permutation is not one of the features")
    assert_left(torn, "its perm and inv_perm do not undo each other")


def test_wrong_channels_are_an_error():
    for original, shape in ((convolution(4), (3, 8, 8)), (affine(4), (3,)), (permuted_linear(4), (3,))):
        for module in (original, fuse(copy.deepcopy(original))):
            with pytest.raises((RuntimeError, ValueError)):
                module.inverse(torch.randn(2, *shape))
