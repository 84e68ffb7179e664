"""A fused MLP under autocast, transforms, tracers, compilers and gradient modes."""

import copy
import warnings

import torch
from conditioner_cases import (
    INPUTS,
    OUTPUTS,
    ROWS,
    assert_left,
    calls,
    data,
    pair,
    sequential,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastflow
from fastflow import _backend
from fastflow.fusion import fuse, unfuse


def test_sixteen_bits_and_autocast_are_pytorchs():
    fused, original = pair(nn.Module.bfloat16)
    assert_left(fused, original, data().bfloat16())
    fused, original = pair()
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(data()).dtype == torch.bfloat16
        assert_left(fused, original, data())


def test_a_forced_backend():
    fused, original = pair()
    with fastflow.backend("reference"):
        assert_left(fused, original, data())
    with fastflow.backend("cpu"):
        assert calls(fused, data()) == 1


def test_without_the_native_library(monkeypatch):
    fused, original = pair()
    monkeypatch.setattr(_backend, "state", lambda name: _backend.State("unavailable", "it is not built"))
    assert_left(fused, original, data())


def test_transforms():
    (fused, original), x, direction = pair(), data(), data()
    torch.testing.assert_close(torch.vmap(fused)(x), original(x))
    torch.testing.assert_close(torch.vmap(fused)(x.expand(3, ROWS, INPUTS)), original(x).expand(3, ROWS, OUTPUTS))
    torch.testing.assert_close(torch.func.jvp(fused, (x,), (direction,)), torch.func.jvp(original, (x,), (direction,)))
    parameters = dict(original.named_parameters())

    def loss(net: nn.Module, parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    for transform in (lambda f: f, torch.func.grad):
        found, expected = (transform(lambda given, net=net: loss(net, given))(parameters) for net in (fused, original))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        found, expected = (torch.autograd.forward_ad.unpack_dual(net(dual)) for net in (fused, original))
        torch.testing.assert_close(found.tangent, expected.tangent)


def test_functional_call_uses_the_given_parameters():
    (fused, original), x = pair(), data()
    others = {name: torch.randn_like(each) for name, each in fused.named_parameters()}
    assert calls(lambda: torch.func.functional_call(fused, others, (x,))) == 1
    torch.testing.assert_close(torch.func.functional_call(fused, others, (x,)),
                               torch.func.functional_call(original, others, (x,)), rtol=1e-4, atol=1e-4)


def test_tracers():
    (fused, original), x = pair(), data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(fused, x, check_trace=False)
    assert "fastflow" not in str(traced.inlined_graph)
    assert torch.equal(traced(x), original(x))
    graph = torch.fx.symbolic_trace(fused)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1", "2", "3", "4"]
    assert torch.equal(graph(x), original(x))
    assert copy.deepcopy(fused).to("meta")(x.to("meta")).shape == (ROWS, OUTPUTS)
    program = torch.export.export(fused, (x,), dynamic_shapes=(({0: torch.export.Dim("rows")}),), strict=False)
    torch.testing.assert_close(program.module()(x[:3]), original(x[:3]))


def test_compiles_into_one_graph():
    torch.compiler.reset()
    (fused, original), x = pair(), data().requires_grad_()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()]) for net in (fused, original)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled(x), original(x))
    found = torch.autograd.grad(compiled(x).square().sum(), [x, *fused.parameters()])
    torch.testing.assert_close(found, results[1], rtol=1e-4, atol=1e-4)


def test_gradient_modes():
    (fused, original), x = pair(), data()
    expected = fused(x)
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert calls(fused, x) == 1
            out = fused(x)
        assert torch.equal(out, expected)
        assert not out.requires_grad
        assert out.is_inference() == (mode is torch.inference_mode)
    torch.testing.assert_close(expected, original(x))


def test_frozen_parameters_get_no_gradient():
    fused, original = pair(lambda net: net[2].requires_grad_(False))
    for net in (fused, original):
        net(data()).sum().backward()
    for mine, theirs in zip(fused.parameters(), original.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
    assert fused[2].weight.grad is None
    frozen, x = fuse(sequential().requires_grad_(False)), data().requires_grad_()
    assert not frozen(x.detach()).requires_grad
    (grad,) = torch.autograd.grad(frozen(x).sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(unfuse(frozen)(x).sum(), x)[0])


def test_gradients_of_some_parameters():
    (fused, original), x = pair(), data()
    for place in (0, 2, 4):
        for name in ("weight", "bias"):
            found, expected = (torch.autograd.grad(net(x).square().sum(), getattr(net[place], name))
                               for net in (fused, original))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_second_derivatives_and_checkpoints():
    fused, original = pair(nn.Module.double)
    x = data().double().requires_grad_()
    results = []
    for net in (fused, original):
        first = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)[0]
        results.append([first, *torch.autograd.grad(first.square().sum(), [x, *net.parameters()], allow_unused=True)])
    for mine, theirs in zip(*results, strict=True):
        # A last bias shifts only where no derivative is left: PyTorch has none for it, or zeros.
        torch.testing.assert_close(mine if mine is not None else torch.zeros_like(theirs),
                                   theirs if theirs is not None else torch.zeros_like(mine))
    expected = torch.autograd.grad(fused(x).square().sum(), [x, *fused.parameters()])
    for reentrant in (False, True):
        out = checkpoint(fused, x, use_reentrant=reentrant)
        out.square().sum().backward()
        assert torch.equal(x.grad, expected[0])
        assert all(map(torch.equal, (each.grad for each in fused.parameters()), expected[1:]))
        x.grad = None
        fused.zero_grad()
