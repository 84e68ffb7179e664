"""Every fused layer of nflows and its options against the original: values, gradients, and what has to stay."""

import copy

import pytest
import torch
from agreement import assert_agrees, assert_keeps, leaves, perturbed
from nflows_cases import BOTH, CASES, DIRECTIONS, inputs, started
from oracles import relayout
from torch import nn

from fastflow import fuse, unfuse
from fastflow.fusion.layer import is_fused

both = pytest.mark.parametrize(("name", "way"), BOTH, ids=[f"{name} {way}" for name, way in BOTH])


def layer_of(name: str) -> nn.Module:
    return perturbed(started(name))


def single(name: str, way: str, rows: int = 17) -> tuple[torch.Tensor, ...]:
    return tuple(each.float() for each in inputs(name, way, rows))


@both
def test_values_and_gradients_agree(name, way):
    layer = layer_of(name)
    for mode in (True, False):
        fused = assert_agrees(layer.train(mode), DIRECTIONS[way], *inputs(name, way))
        assert is_fused(fused)


@both
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(name, way, rows):
    layer = layer_of(name)
    if rows == 0 and name.startswith("multiscale") and way == "forward":
        with pytest.raises(RuntimeError, match="cannot reshape tensor of 0 elements"):
            layer(*single(name, way, 0))
        z, log_det = fuse(layer)(*single(name, way, 0))
        assert (z.shape, log_det.shape) == ((0, *(CASES[name].latent or CASES[name].shape)), (0,))
    else:
        assert_agrees(layer, DIRECTIONS[way], *inputs(name, way, rows))


@both
def test_any_strides(name, way):
    layer = fuse(layer_of(name))
    given = single(name, way)
    expected = leaves(DIRECTIONS[way](layer, *given))
    for layout in ("channels_last", "strided", "transposed"):
        found = leaves(DIRECTIONS[way](layer, *(relayout(each, layout) for each in given)))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CASES)
def test_everything_else_stays(name):
    assert_keeps(layer_of(name), DIRECTIONS["forward"], *single(name, "forward"))


@both
def test_vmap_and_jvp(name, way):
    layer, given = fuse(layer_of(name).double()), inputs(name, way)
    call = DIRECTIONS[way]
    expected = leaves(call(layer, *given))
    rows = torch.func.vmap(lambda *row: tuple(each[0] for each in call(layer, *(part[None] for part in row))))(*given)
    torch.testing.assert_close(leaves(list(rows)), expected)
    x, *context = given
    direction = torch.randn_like(x)
    _, slopes = torch.func.jvp(lambda each: call(layer, each, *context), (x,), (direction,))
    x.requires_grad_()
    for value, slope in zip(leaves(call(layer, x, *context)), slopes, strict=True):
        along = 0.0
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)
            along = 0.0 if gradient is None else (gradient * direction).sum().item()
        assert slope.sum().item() == pytest.approx(along, rel=1e-9, abs=1e-9)


@both
def test_autocast_leaves_the_arithmetic_in_float32(name, way):
    layer = layer_of(name)
    if hasattr(layer, "transform_net"):  # what a conditioner makes of autocast is its own affair
        layer.transform_net.forward = torch.autocast("cpu", enabled=False)(layer.transform_net.forward)
    fuse(layer)
    expected = leaves(DIRECTIONS[way](layer, *single(name, way)))
    with torch.autocast("cpu", torch.bfloat16):
        found = leaves(DIRECTIONS[way](layer, *single(name, way)))
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, other)


@both
def test_16_bit_storage_has_a_float32_log_det(name, way):
    if not any(each in name for each in ("act norm", "lu", "dense", "convolution", "permutation", "squeeze")):
        return
    layer = fuse(layer_of(name))
    given = tuple(each.bfloat16() for each in single(name, way))
    expected, log_det = DIRECTIONS[way](layer.bfloat16().float(), *(each.float() for each in given))
    z, own = DIRECTIONS[way](layer.bfloat16(), *given)
    assert (z.dtype, own.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(z.float(), expected, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(own, log_det)


COMPILED = ("affine mixed", "affine context", "additive images", "act norm", "lu", "dense", "convolution",
            "permutation random", "squeeze", "multiscale images", "multiscale squeezing")


@pytest.mark.parametrize(("name", "way"), [pair for pair in BOTH if pair[0] in COMPILED])
def test_compiles_whole(name, way):
    torch._dynamo.reset()
    layer, given = fuse(layer_of(name).train()), single(name, way)
    compiled = torch.compile(lambda *given: DIRECTIONS[way](layer, *given), fullgraph=True, backend="aot_eager")
    for rows in (17, 5):
        part = tuple(each[:rows] for each in given)
        torch.testing.assert_close(leaves(compiled(*part)), leaves(DIRECTIONS[way](layer, *part)))
    values = leaves(compiled(*given))
    parameters = list(layer.parameters())
    if parameters:
        gradients = torch.autograd.grad(sum(each.sum() for each in values), parameters, allow_unused=True)
        assert all(each is None or each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("name", [name for name in CASES if "wide" not in name])
def test_differentiates_twice(name):
    layer = fuse(copy.deepcopy(layer_of(name)).double())
    x, *context = inputs(name, "forward", 2)
    x = x[:2].requires_grad_()
    parameters = [x, *layer.parameters()]

    def gradients(of: nn.Module) -> list:
        z, log_det = of(x, *context)
        first = torch.autograd.grad(z.square().sum() + log_det.sum(), parameters, create_graph=True, allow_unused=True)
        total = sum(each.square().sum() for each in first if each is not None)
        return [each for each in torch.autograd.grad(total, parameters, allow_unused=True) if each is not None]

    mine = gradients(layer)
    torch.testing.assert_close(mine, gradients(unfuse(layer)))
