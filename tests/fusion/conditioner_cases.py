"""Small MLPs, fused beside the original, and how often a call of one calls the op."""

import copy
from collections.abc import Callable

import torch
from agreement import perturbed
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastflow.fusion import fuse
from fastflow.fusion.mlp import Mlp

ROWS, INPUTS, OUTPUTS = 100, 6, 5


class Calls(TorchDispatchMode):
    """Counts the calls of the op."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.fastflow.mlp.default
        return function(*args, **(kwargs or {}))


def calls(function: Callable, *given: object) -> int:
    with Calls() as counted:
        function(*given)
    return counted.count


def call(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


def sequential(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    return perturbed(nn.Sequential(nn.Linear(INPUTS, 33), activation(), nn.Linear(33, 20), activation(),
                                   nn.Linear(20, OUTPUTS)))


def data(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, INPUTS)


def pair(change: Callable[[nn.Sequential], object] = lambda net: None) -> tuple[nn.Sequential, nn.Sequential]:
    """A fused network and its original, both changed after that."""
    original = sequential()
    fused = fuse(copy.deepcopy(original))
    assert isinstance(fused, Mlp)
    for net in (fused, original):
        torch.manual_seed(1)
        change(net)
    return fused, original


def assert_left(fused: nn.Module, original: nn.Module, x: Tensor) -> None:
    """The op is not called, and what comes out are PyTorch's bits."""
    results = []
    for net in (fused, original):
        torch.manual_seed(1)
        results.append(net(x))
    assert torch.equal(*results)
    assert calls(fused, x) == 0


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def replacing(place: int, part: Callable[[], nn.Module]) -> Callable[[nn.Sequential], object]:
    """What puts a new part into a network's place."""
    return lambda net: net.__setitem__(place, part())
