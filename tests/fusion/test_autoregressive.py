"""The inverse of autoregressive layers by stages gives what the libraries' passes give."""

import copy
from functools import partial

import pytest
import torch
from agreement import assert_agrees, assert_keeps, leaves, outputs_and_gradients, perturbed
from autoregressive_cases import CASES, FEW, NFLOWS, C, D, forward, given, inverse, layer
from oracles import relayout

from fastflow.fusion import fuse, incremental, unfuse


@pytest.mark.parametrize("name", CASES)
def test_stages_give_what_passes_give(name, by_stages):
    """float64, where the order of sums is all that differs."""
    original, inputs = layer(name).double(), tuple(each.double() for each in given(name))
    fused = fuse(copy.deepcopy(original))
    assert CASES[name][2] in (None, fused._fused_plan.stages)
    expected, expected_gradients = outputs_and_gradients(original, inverse, inputs)
    results, gradients = outputs_and_gradients(fused, inverse, inputs)
    for mine, other in zip([*results, *gradients], [*expected, *expected_gradients], strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert (mine - other).abs().max() <= 1e-12 * other.abs().max().clamp(min=1)
    with torch.no_grad():
        for mine, other in zip(inverse(fused, *inputs), results, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("call", [forward, inverse])
@pytest.mark.parametrize("name", CASES)
def test_agrees(name, call):
    assert_agrees(layer(name), call, *given(name))


@pytest.mark.parametrize("name", CASES)
def test_stages_agree(name, by_stages):
    assert_agrees(layer(name), inverse, *given(name))


@pytest.mark.parametrize("call", [forward, inverse])
@pytest.mark.parametrize("name", ["nflows", "normflows", "zuko"])
def test_without_their_context(name, call):
    """MADE reads a context only where it is given."""
    if name == "zuko":
        fused = fuse(layer("zuko context"))
        with pytest.raises(RuntimeError):
            call(fused, *given("zuko"))
    else:
        assert_agrees(layer(f"{name} context"), call, *given(name))


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(name, rows, by_stages):
    original, inputs = layer(name), given(name, rows)
    if rows:
        assert_agrees(original, inverse, *inputs)
        return
    for call in (forward, inverse):
        results, gradients = outputs_and_gradients(fuse(copy.deepcopy(original)), call, inputs)
        assert [each.shape for each in results] == [inputs[0].shape, (0,)]
        assert gradients[0].shape == inputs[0].shape


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("layout", ["strided", "transposed", "offset"])
def test_layouts(name, layout, by_stages):
    inputs = tuple(relayout(each, layout) for each in given(name))
    assert_agrees(layer(name), forward, *inputs)
    assert_agrees(layer(name), inverse, *inputs)


@pytest.mark.parametrize("name", FEW)
def test_keeps(name):
    assert_keeps(layer(name), forward, *given(name))
    assert_keeps(layer(name), inverse, *given(name))


@pytest.mark.parametrize("name", FEW)
def test_rows_in_chunks(name, by_stages, monkeypatch):
    inputs = given(name, 1100)
    fused = fuse(layer(name))
    with torch.no_grad():
        expected = inverse(fused, *inputs)
        monkeypatch.setattr(incremental, "CHUNK", 0)  # then they are of 512
        for mine, other in zip(inverse(fused, *inputs), expected, strict=True):
            torch.testing.assert_close(mine, other)


def test_one_context_for_all_rows(by_stages):
    z, context = given("nflows context")
    assert_agrees(layer("nflows context"), inverse, z, context[:1])
    assert_agrees(layer("nflows context"), inverse, z, context[0])


@pytest.mark.parametrize(("shape", "context"), [((), None), ((3, 4), None), ((3, 4), (4,)), ((3, 4), ()),
                                                ((0, 4), (4,))])
@pytest.mark.parametrize("call", [forward, inverse])
def test_leading_dims_of_zuko(shape, context, call, by_stages):
    x = torch.randn(*shape, D)
    inputs = (x,) if context is None else (x, torch.randn(*context, C))
    original = layer("zuko" if context is None else "zuko context")
    if x.numel():
        assert_agrees(original, call, *inputs)
    else:
        assert [each.shape for each in call(fuse(original), *inputs)] == [x.shape, x.shape[:-1]]


@pytest.mark.parametrize("name", FEW)
def test_gradients_have_gradients(name, by_stages):
    original = layer(name).double()
    inputs = tuple(each.double().requires_grad_() for each in given(name, 3))
    second = []
    for module in (original, fuse(copy.deepcopy(original))):
        wanted = [*inputs, *module.parameters()]
        x, log_det = inverse(module, *inputs)
        first = torch.autograd.grad((x.sin().sum(1) * log_det).sum(), wanted, create_graph=True, allow_unused=True)
        total = sum(each.square().sum() for each in first if each is not None)
        second.append(torch.autograd.grad(total, wanted, allow_unused=True))
    for mine, other in zip(second[1], second[0], strict=True):
        torch.testing.assert_close(mine, other)


def test_gradients_of_some(by_stages):
    """Of z alone with a frozen network, and of single parameters."""
    original, inputs = layer("nflows context").double(), tuple(each.double() for each in given("nflows context"))
    for kept in ([], ["autoregressive_net.final_layer.bias"], ["autoregressive_net.blocks.0.context_layer.weight"]):
        gradients = []
        for module in (original, fuse(copy.deepcopy(original))):
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in kept)
            z = inputs[0].clone().requires_grad_(not kept)
            x, log_det = inverse(module, z, inputs[1])
            wanted = [each for each in (z, *module.parameters()) if each.requires_grad]
            gradients.append(torch.autograd.grad(x.sum() + log_det.sum(), wanted))
        torch.testing.assert_close(gradients[1], gradients[0])


def saved_for_backward(module, z):
    """How many numbers autograd keeps of an inverse."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.setdefault(each.data_ptr(), each), torch.clone):
        module.inverse(z)
    return sum(each.numel() for each in kept.values())


def test_gradients_keep_one_pass(by_stages):
    """What autograd saves does not grow with the number of stages."""
    original, z = perturbed(NFLOWS(16, 24), 0.3), torch.randn(256, 16, requires_grad=True)
    assert saved_for_backward(fuse(copy.deepcopy(original)), z) < saved_for_backward(original, z) / 16


def test_transforms_of_functions(by_stages):
    for name in FEW:
        original, inputs = layer(name), given(name, 5)
        fused = fuse(copy.deepcopy(original))
        tangents = tuple(map(torch.randn_like, inputs))
        for mine, other in zip(*(leaves(torch.func.jvp(partial(inverse, module), inputs, tangents))
                                 for module in (fused, original)), strict=True):
            torch.testing.assert_close(mine, other)
        rows = tuple(each[:, None] for each in inputs)
        mapped = torch.vmap(partial(inverse, fused))(*rows)
        for mine, other in zip(mapped, inverse(fused, *inputs), strict=True):
            torch.testing.assert_close(mine[:, 0], other)


@pytest.mark.parametrize("name", FEW)
def test_compiles_whole(name, by_stages):
    fused, inputs = fuse(layer(name)), given(name, 5)
    for call in (forward, inverse):
        torch._dynamo.reset()
        compiled = torch.compile(partial(call, fused), fullgraph=True, backend="aot_eager")
        given_here = [each.clone().requires_grad_() for each in inputs]
        for mine, other in zip(compiled(*given_here), call(fused, *inputs), strict=True):
            torch.testing.assert_close(mine, other)
            mine.sum().backward(retain_graph=True)


@pytest.mark.parametrize("name", FEW)
def test_autocast_inverts_what_it_computed(name, by_stages):
    """The conditioner in bfloat16 both ways, the arithmetic in float32."""
    fused, (x, *context) = fuse(layer(name)), given(name)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = forward(fused, x, *context)
        back, log_det_back = inverse(fused, z, *context)
    assert {each.dtype for each in (z, log_det, back, log_det_back)} == {torch.float32}
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)


def test_bfloat16_module(by_stages):
    original, z = layer("nflows"), given("nflows")[0]
    fused = fuse(copy.deepcopy(original).bfloat16())
    torch.testing.assert_close(fused.inverse(z.bfloat16())[0].float(), original.inverse(z)[0], rtol=0.1, atol=0.3)


def test_unfuses():
    for name in FEW:
        original, inputs = layer(name), given(name)
        restored = unfuse(fuse(copy.deepcopy(original)))
        assert type(restored) is type(original)
        for mine, other in zip(inverse(restored, *inputs), inverse(original, *inputs), strict=True):
            assert torch.equal(mine, other)
