"""Channel mixing: values, determinants, exact inverses, all parametrisations."""

import math

import pytest
import torch
from backends import cpu_backends
from bijections import assert_inverts, assert_log_det, scatter
from channel_mix_cases import (  # noqa: F401, collected here to run on this file's backends
    everything,
    make,
    test_empty,
    test_kernels,
    test_pixels_do_not_see_each_other,
    test_results_are_laid_out_like_x,
    test_results_that_nothing_depends_on,
    test_same_bits_again,
    test_squeezes_what_it_reads_and_undoes_what_it_writes,
    test_without_center_shift_and_log_det,
)
from oracles import assert_same_bits_on_any_threads, assert_three_way
from torch.autograd import gradcheck, gradgradcheck

from fastflow.nn import ChannelMix
from fastflow.ops import PLU, QR, Householder, channel_mix, plu
from fastflow.ops.channel_mix import _backward, _forward, map_channels
from fastflow.ops.invert import invert
from fastflow.ops.invert import reference as invert_reference

CHANNELS = [1, 2, 4, 8]
backend = cpu_backends(_forward, _backward)


@pytest.mark.parametrize(("shape", "first", "split", "squeezing"), [
    ((4, 8), 3, 5, 0), ((3, 8, 4, 6), 3, 0, 0), ((3, 8, 4, 6), 0, 3, 0), ((3, 8, 4, 6), 0, 3, 1),
    ((3, 8, 4, 6), 3, 0, -2)])  # fmt: skip
def test_opcheck(shape, first, split, squeezing):
    x, channels = torch.randn(shape), 32 if squeezing > 0 else 8
    parts = (x[:, :first], x[:, first:]) if first else (x, None)
    vectors = [torch.randn(size) for size in (channels, channels, (), shape[0])]
    arguments = (*parts, torch.randn(channels, channels).T, *vectors, split, squeezing)
    torch.library.opcheck(torch.ops.fastflow.channel_mix.default, arguments)
    z, rest, _ = torch.ops.fastflow.channel_mix(*arguments)
    torch.library.opcheck(torch.ops.fastflow.channel_mix_backward.default,
                          (z, rest if split else None, *arguments[:4], squeezing))


@pytest.mark.parametrize("shape", [(3001, 24), (301, 24, 7, 7)], ids=str)
def test_many_threads_give_the_same_bits(shape):
    x, log_det, given, weights = make(shape, torch.float32)
    assert_same_bits_on_any_threads(lambda: everything(map_channels, x, given, log_det, 0, weights).values())


@pytest.mark.parametrize("inverse", [False, True])
def test_second_derivatives(inverse):
    x, weight = torch.randn(2, 3, 2, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    assert gradgradcheck(lambda x, w: channel_mix(x, w, inverse=inverse), (x.requires_grad_(), weight.requires_grad_()))


def _rotation(channels: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q.to(dtype)


KINDS = ["full", "plu", "householder", "qr", "qr_abs"]


def _mixed(channels: int, kind: str, dtype: torch.dtype) -> ChannelMix:
    layer = ChannelMix(channels, kind, _rotation(channels) if kind in ("full", "plu") else None)
    return scatter(layer, 0.05).to(dtype)


@pytest.mark.parametrize("spatial", [(), (7, 7), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inverts(spatial, channels, kind, dtype):
    assert_inverts(_mixed(channels, kind, dtype), torch.randn(3, channels, *spatial, dtype=dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inverts_wide(kind, dtype):
    assert_inverts(_mixed(196, kind, dtype), torch.randn(5, 196, dtype=dtype))


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_log_det_is_the_jacobian(channels, kind):
    assert_log_det(_mixed(channels, kind, torch.float64), torch.randn(2, channels, 2, 1, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values(dtype):
    x, weight = torch.randn(3, 5, 4, 4).to(dtype), torch.randn(5, 5)
    z, log_det = channel_mix(x, weight)
    truth = torch.einsum("ij,bjhw->bihw", weight.double(), x.double())
    eager = torch.nn.functional.conv2d(x.float(), weight[:, :, None, None]).to(dtype)
    assert z.dtype == dtype
    assert_three_way(z, eager, truth, name="z")
    assert_three_way(log_det, 16 * torch.linalg.slogdet(weight).logabsdet.expand(3),
                     16 * torch.linalg.slogdet(weight.double()).logabsdet.expand(3), name="log_det")


@pytest.mark.parametrize("kind", ["full", "plu"])
def test_starts_as_the_identity_or_the_given_matrix(kind):
    x = torch.randn(4, 6)
    z, log_det = ChannelMix(6, kind)(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(4))
    rotation = _rotation(6)
    z, log_det = ChannelMix(6, kind, rotation)(x)
    assert torch.allclose(z, x @ rotation.T, atol=1e-6)
    assert torch.allclose(log_det, torch.zeros(4), atol=1e-6)


def test_plu_keeps_permutation_and_signs():
    weight = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, -3.0], [1.0, 0.0, 0.0]])
    layer = ChannelMix(3, "plu", weight)
    other = ChannelMix(3, "plu")
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3)
    assert torch.allclose(other(x)[0], x @ weight.T)
    assert {name for name, _ in layer.named_parameters()} == {"lower", "upper", "log_scale"}


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients(inverse):
    x, weight = torch.randn(2, 3, 2, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    x.requires_grad_(), weight.requires_grad_()
    assert gradcheck(lambda x, w: channel_mix(x, w, inverse=inverse), (x, weight))
    permutation, *parts, sign = plu(weight)
    parts = [part.detach().requires_grad_() for part in parts]
    assert gradcheck(lambda x, *p: channel_mix(x, PLU(permutation, *p, sign.detach()), inverse=inverse), (x, *parts))


def test_reflections():
    vectors, x = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    expected = x
    for v in vectors.flip(0):
        expected = expected - 2 * (expected @ v / (v @ v))[:, None] * v
    z, log_det = channel_mix(x, Householder(vectors))
    torch.testing.assert_close(z, expected)
    assert torch.equal(log_det, torch.zeros(5, dtype=torch.float64))
    upper, scale = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0.5, -2.0, 1.0, 3.0], dtype=torch.float64)
    z, log_det = channel_mix(x, QR(vectors, upper, scale))
    torch.testing.assert_close(z, channel_mix(x @ (upper.triu(1) + torch.diag(scale)).T, Householder(vectors))[0])
    torch.testing.assert_close(log_det, torch.full((5,), 3.0, dtype=torch.float64).log())


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_of_reflections(inverse):
    x, vectors, upper, scale = (torch.randn(shape, dtype=torch.float64, requires_grad=True)
                                for shape in ((2, 3, 2), (2, 3), (3, 3), 3))
    assert gradcheck(lambda x, *p: channel_mix(x, QR(*p), inverse=inverse), (x, vectors, upper, scale))
    assert gradcheck(lambda x, v: channel_mix(x, Householder(v), inverse=inverse), (x, vectors))


def test_starts_of_the_factored_kinds():
    """A rotation, a rotation that shrinks every axis to ln 2, and a rotation."""
    x = torch.randn(3, 6)
    for kind, log_scale in (("householder", 0.0), ("qr", math.log(math.log(2))), ("qr_abs", 0.0)):
        z, log_det = ChannelMix(6, kind)(x)
        torch.testing.assert_close(z.norm(dim=1), math.exp(log_scale) * x.norm(dim=1))
        torch.testing.assert_close(log_det, torch.full((3,), 6 * log_scale))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 24, 64])
def test_invert(size):
    matrix = torch.randn(size, size, dtype=torch.float64, requires_grad=True)
    found, expected = invert(matrix), invert_reference(matrix)
    weights = tuple(torch.randn_like(each) for each in expected)
    grads = [torch.autograd.grad(each, matrix, weights) for each in (found, expected)]
    for ours, theirs in zip((*found, *grads[0]), (*expected, *grads[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * float(theirs.detach().abs().max()))
    torch.library.opcheck(torch.ops.fastflow.invert.default, (matrix.detach().T,))
    if size < 5:
        assert gradgradcheck(invert, (matrix,))


def test_invert_needs_pivots():
    inverse, log_abs_det = invert(torch.tensor([[0.0, 2.0], [-4.0, 0.0]], dtype=torch.float64))
    assert torch.equal(inverse, torch.tensor([[0.0, -0.25], [0.5, 0.0]], dtype=torch.float64))
    assert float(log_abs_det) == pytest.approx(math.log(8))
    assert invert(torch.full((2, 2), float("nan"), dtype=torch.float64))[1].isnan()


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)], ids=str)
def test_small_batches(rows, shape):
    z, log_det = ChannelMix(3)(torch.randn(rows, *shape))
    assert z.shape == (rows, *shape)
    assert log_det.shape == (rows,)


def test_autocast_leaves_the_state_alone():
    layer, x = _mixed(4, "full", torch.float32), torch.randn(3, 4, 5)
    expected = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x)[0], expected)


def test_backward_under_autocast_leaves_the_gradients_alone():
    x, log_det, given, weights = make((5, 12, 7, 7), torch.float32)
    expected = everything(map_channels, x, given, log_det, 0, weights)
    with torch.autocast("cpu", torch.bfloat16):
        found = everything(map_channels, x, given, log_det, 0, weights)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_singular_matrix():
    assert channel_mix(torch.randn(2, 3), torch.zeros(3, 3))[1].isneginf().all()
    with pytest.raises(ValueError, match="plu: matrix is singular"):
        ChannelMix(3, "plu", torch.ones(3, 3))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"channel_mix: weight has shape \(4, 4\), expected \(3, 3\)"):
        channel_mix(torch.zeros(2, 3), torch.eye(4))
    with pytest.raises(ValueError, match=r"channel_mix: weight.permutation has shape \(2,\), expected \(3,\)"):
        channel_mix(torch.zeros(2, 3), plu(torch.eye(2)))
    with pytest.raises(TypeError, match=r"channel_mix: weight\.permutation has dtype"):
        channel_mix(torch.zeros(2, 3), plu(torch.eye(3))._replace(permutation=torch.zeros(3)))
    with pytest.raises(ValueError, match="ChannelMix: kind is 'lu', expected one of full, plu, householder, qr"):
        ChannelMix(3, "lu")
    with pytest.raises(ValueError, match="ChannelMix: weight is given for kind 'qr', expected None"):
        ChannelMix(3, "qr", torch.eye(3))
    with pytest.raises(ValueError, match="ChannelMix: reflections is 2 for kind 'full', expected None"):
        ChannelMix(3, reflections=2)
    with pytest.raises(ValueError, match="ChannelMix: reflections is 0, expected at least 1"):
        ChannelMix(3, "householder", reflections=0)
    with pytest.raises(ValueError, match=r"channel_mix: weight\.vectors has shape \(2, 4\), expected \(2, 3\)"):
        channel_mix(torch.zeros(2, 3), Householder(torch.ones(2, 4)))
    with pytest.raises(ValueError, match=r"ChannelMix: weight has shape \(2, 3\), expected \(3, 3\)"):
        ChannelMix(3, weight=torch.zeros(2, 3))
