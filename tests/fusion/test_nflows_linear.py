"""nflows' linear layers, fused: both ways to compute them, their cache, and what their originals cannot do."""

import copy
from collections.abc import Callable

import pytest
import torch
from agreement import assert_agrees, compare, perturbed
from oracles import assert_three_way
from peers import nflows
from torch import Tensor, nn

import fastflow.fusion.linear
from fastflow import fuse, unfuse
from fastflow.fusion.linear import lu_product
from fastflow.fusion.swap import survey

T = nflows.transforms
KINDS: dict[str, Callable[[int], nn.Module]] = {
    "LULinear": lambda features: T.LULinear(features, identity_init=False),
    "NaiveLinear": T.NaiveLinear,
    "OneByOneConvolution": lambda channels: T.OneByOneConvolution(channels, identity_init=False),
}


def layer_of(kind: str, features: int = 6) -> nn.Module:
    torch.manual_seed(features)
    return perturbed(KINDS[kind](features))


def data(kind: str, rows: int = 9, features: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    shape = (rows, features, 3, 2) if kind == "OneByOneConvolution" else (rows, features)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(params=["matrix", "triangles"])
def form(request, monkeypatch):
    """Whether a matrix is made, whatever the number of rows."""
    least = 0 if request.param == "matrix" else 10**9
    for name in ("_ROWS_A_FEATURE", "_NUMBERS", "_NUMBERS_INVERSE"):
        monkeypatch.setattr(fastflow.fusion.linear, name, least)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("features", [6, 64, 65])
@pytest.mark.parametrize("kind", ["LULinear", "OneByOneConvolution"])
def test_both_forms_agree_with_the_original(kind, features):
    layer = layer_of(kind, features)
    assert_agrees(layer, lambda m, x: m(x), data(kind, 20, features))
    assert_agrees(layer, lambda m, x: m.inverse(x), data(kind, 20, features))


def test_gradients_of_a_nearly_singular_map_keep_their_digits():
    torch.manual_seed(0)
    lower, upper = (0.3 * torch.randn(64, 64, dtype=torch.float64) for _ in range(2))
    factors = (lower.tril(-1) + upper.triu()).float()
    weights = torch.randn(64, 64, dtype=torch.float64)

    def gradient(factors: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        factors = factors.clone().requires_grad_()
        made = make(factors)
        return torch.autograd.grad((made * weights.to(made.dtype)).sum(), factors)[0]

    def solved(factors: Tensor) -> Tensor:
        one = torch.eye(64, dtype=factors.dtype)
        below = torch.linalg.solve_triangular(factors, one, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(factors, below, upper=True)

    truth = gradient(factors.double(), solved)
    assert torch.linalg.cond(lu_product(factors.double(), inverse=False)) > 1e6
    assert_three_way(gradient(factors, lambda each: lu_product(each, inverse=True)), gradient(factors, solved), truth)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("features", [6, 65])
def test_a_dense_inverse_that_the_original_cannot_compute(features):
    layer, z = layer_of("NaiveLinear", features), data("NaiveLinear", 9, features)
    with pytest.raises(RuntimeError, match="solve"):
        layer.inverse(z.float())

    def solved(layer: nn.Module, z: Tensor) -> list[Tensor]:
        z = z.clone().requires_grad_()
        x = torch.linalg.solve(layer._weight, (z - layer.bias).T).T
        log_det = -torch.linalg.slogdet(layer._weight).logabsdet.expand(len(z))
        return [x, log_det, *torch.autograd.grad(x.square().sum() + log_det.sum(), [z, *layer.parameters()])]

    def inverted(layer: nn.Module, z: Tensor) -> list[Tensor]:
        z = z.clone().requires_grad_()
        x, log_det = layer.inverse(z)
        return [x, log_det, *torch.autograd.grad(x.square().sum() + log_det.sum(), [z, *layer.parameters()])]

    truth = solved(copy.deepcopy(layer).double(), z.float().double())
    compare(inverted(fuse(copy.deepcopy(layer)), z.float()), solved(layer, z.float()), truth, "inverse")


@pytest.mark.parametrize("kind", ["LULinear", "OneByOneConvolution"])
def test_eval_mode_with_the_cache_keeps_what_the_first_call_made(kind):
    layer = layer_of(kind).eval()
    fused, x = fuse(copy.deepcopy(layer)), data(kind).float()
    before = fused(x), fused.inverse(x)
    for each in (layer, fused):
        each.use_cache()
        each(x), each.inverse(x)
        with torch.no_grad():
            each.upper_entries.add_(1)
            each.bias.add_(1)
    found = fused(x), fused.inverse(x)
    torch.testing.assert_close(found, (layer(x), layer.inverse(x)))
    torch.testing.assert_close(found[0][0], before[0][0] + 1)
    assert fused.train().cache.weight is fused.cache.inverse is fused.cache.logabsdet is None
    assert not torch.allclose(fused(x)[0], found[0][0])


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_cache_holds_is_the_matrix_of_the_original(kind):
    layer = layer_of(kind).double()
    expected = layer.weight(), layer.weight().inverse(), layer.logabsdet()
    fuse(layer).eval().use_cache()
    x = data(kind)
    layer(x), layer.inverse(x)
    torch.testing.assert_close((layer.cache.weight, layer.cache.inverse, layer.cache.logabsdet), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_is_as_exact_under_autocast(kind):
    layer, x = fuse(layer_of(kind).eval()), data(kind).float()
    layer.use_cache()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x), layer.inverse(x)
    layer.use_cache(False)
    torch.testing.assert_close(found, (layer(x), layer.inverse(x)))


def test_linear_layers_of_more_dims_are_the_original():
    layer, x = layer_of("LULinear"), torch.randn(2, 5, 6)
    expected = layer(x)
    torch.testing.assert_close(fuse(layer)(x), expected, rtol=0, atol=0)


def test_other_dims_than_images_are_refused_by_the_convolution():
    layer = fuse(layer_of("OneByOneConvolution"))
    for call in (layer, layer.inverse):
        with pytest.raises(ValueError, match="Inputs must be a 4D tensor"):
            call(torch.randn(3, 6))


def test_a_loaded_permutation_is_that_of_the_convolution():
    one, other = layer_of("OneByOneConvolution"), T.OneByOneConvolution(6, identity_init=False)
    assert not torch.equal(one.permutation._permutation, other.permutation._permutation)
    x = data("OneByOneConvolution").float()
    expected = other(x), other.inverse(x)
    fuse(one).load_state_dict(other.state_dict())
    torch.testing.assert_close((one(x), one.inverse(x)), expected)
    unfuse(one)
    assert type(one.permutation) is T.RandomPermutation


def test_a_convolution_without_a_permutation_of_its_channels_is_left():
    layer = T.OneByOneConvolution(4)
    layer.permutation = T.Permutation(torch.tensor([0, 1, 1, 2]))
    assert survey(layer)[0].reason == "its permutation is none of the channels"
    layer.permutation = T.RandomPermutation(4, dim=2)
    assert survey(layer)[0].reason == "its permutation is none of the channels"
    layer.permutation = T.RandomPermutation(4)
    layer.permutation.register_forward_hook(lambda *_: None)
    assert survey(layer)[0].reason == "permutation has a hook or a forward of its own, which would not be called"


def test_one_graph_serves_both_forms():
    layer = fuse(layer_of("LULinear", 16))
    compiled = torch.compile(layer.inverse, fullgraph=True, backend="aot_eager")
    for rows in (3, 2000):
        x = data("LULinear", rows, 16).float()
        torch.testing.assert_close(compiled(x), layer.inverse(x))
