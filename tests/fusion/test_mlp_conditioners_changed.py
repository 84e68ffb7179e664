"""A fused MLP whose parts are hooked, replaced or parametrised afterwards: they are called as PyTorch would."""

import pytest
import torch
from conditioner_cases import (
    INPUTS,
    OUTPUTS,
    Linear,
    assert_left,
    calls,
    data,
    pair,
    replacing,
)
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune

HOOKS = {
    "forward": lambda part, hook: part.register_forward_hook(hook),
    "forward with kwargs": lambda part, hook: part.register_forward_hook(hook, with_kwargs=True),
    "forward always": lambda part, hook: part.register_forward_hook(hook, always_call=True),
    "forward pre": lambda part, hook: part.register_forward_pre_hook(hook),
    "backward": lambda part, hook: part.register_full_backward_hook(hook),
    "backward pre": lambda part, hook: part.register_full_backward_pre_hook(hook),
    "old backward": lambda part, hook: part.register_backward_hook(hook),
}
OLD_HOOKS = pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning")


@OLD_HOOKS
@pytest.mark.parametrize("place", [0, 1, 4])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_parts_are_called(kind, place):
    (fused, original), x, called, handles = pair(), data().requires_grad_(), [], []
    for net in (fused, original):
        handles.append(HOOKS[kind](net[place], lambda *_, net=net: called.append(net)))
    assert_left(fused, original, x)
    gradients = [torch.autograd.grad(net(x).sum(), [x, *net.parameters()]) for net in (fused, original)]
    assert all(map(torch.equal, *gradients))
    assert called.count(fused) > 0
    for handle in handles:
        handle.remove()
    assert calls(fused, x) == 1


@OLD_HOOKS
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_of_the_whole_are_called_around_the_op(kind):
    (fused, original), x, called = pair(), data().requires_grad_(), []
    HOOKS[kind](fused, lambda *_: called.append(kind))
    assert calls(fused, x) == 1
    called.clear()
    out = fused(x)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x), torch.autograd.grad(original(x).sum(), x))
    assert called == [kind]


def test_global_hooks_are_called():
    (fused, original), seen = pair(), []
    handle = register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        assert_left(fused, original, data())
    finally:
        handle.remove()
    assert seen.count("Linear") == 9
    assert calls(fused, data()) == 1


def test_hooks_of_parameters_are_called():
    (fused, _), seen = pair(), []
    fused[2].weight.register_hook(lambda grad: seen.append(grad.shape))
    fused(data()).sum().backward()
    assert seen == [(20, 33)]


def _forward_of_its_own(net: nn.Sequential) -> None:
    net[2].forward = lambda x: torch.nn.functional.linear(x, 2 * net[2].weight)


def _without_bias(net: nn.Sequential) -> None:
    net[2].bias = None


CHANGES = {
    "nested": replacing(2, lambda: nn.Sequential(nn.Linear(33, 20))),
    "Tanh": replacing(1, nn.Tanh),
    "another slope": replacing(1, lambda: nn.LeakyReLU(0.2)),
    "own linear": replacing(0, lambda: Linear(INPUTS, 33)),
    "own linear by class": lambda net: setattr(net[0], "__class__", Linear),
    "bilinear identity": replacing(1, nn.Identity),
    "no bias": replacing(4, lambda: nn.Linear(20, OUTPUTS, bias=False)),
    "bias taken": _without_bias,
    "dropout": lambda net: net.insert(2, nn.Dropout(0.5)),
    "appended": lambda net: net.append(nn.ReLU()),
    "shortened": lambda net: net.pop(4),
    "pruned": lambda net: prune.l1_unstructured(net[0], "weight", 0.5),
    "weight_norm": lambda net: parametrizations.weight_norm(net[2]),
    "old weight_norm": lambda net: nn.utils.weight_norm(net[2]),
    "spectral_norm": lambda net: parametrizations.spectral_norm(net[2]),
    "forward of its own": _forward_of_its_own,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_parts_changed_after_fusing_are_called(name):
    fused, original = pair(CHANGES[name])
    assert_left(fused.eval(), original.eval(), data())
    if name != "spectral_norm":  # whose state changes in each call
        assert_left(fused.train(), original.train(), data())


def test_changes_that_stay_within_the_op_are_seen():
    for change in (replacing(1, lambda: nn.LeakyReLU(0.0)), replacing(2, lambda: nn.Linear(33, 20)), nn.Module.double,
                   lambda net: net.extend([nn.ReLU(), nn.Linear(OUTPUTS, 7)]), lambda net: net[0].weight.data.mul_(2),
                   lambda net: net.requires_grad_(False),
                   lambda net: setattr(net[2], "bias", nn.Parameter(torch.zeros(20)))):
        fused, original = pair(change)
        x = data().to(original[0].weight.dtype)
        torch.testing.assert_close(fused(x), original(x))
        assert calls(fused, x) == 1
