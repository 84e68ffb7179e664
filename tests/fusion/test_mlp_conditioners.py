"""An nn.Sequential of linear layers and rectifiers in a fused model: one op where it can be, else PyTorch's own."""

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from agreement import assert_agrees, assert_keeps, perturbed
from conditioner_cases import (
    INPUTS,
    OUTPUTS,
    ROWS,
    Linear,
    assert_left,
    call,
    calls,
    data,
    pair,
    replacing,
    sequential,
)
from oracles import relayout
from peers import FrEIA, nflows, normflows, zuko
from torch import Tensor, nn

from fastflow.fusion import fuse, unfuse
from fastflow.fusion.layer import is_fused
from fastflow.fusion.mlp import _FEWEST_ROWS, _WIDEST

CONDITIONERS = {
    "ReLU": sequential,
    "LeakyReLU": lambda: sequential(nn.LeakyReLU),
    "in place": lambda: sequential(lambda: nn.ReLU(inplace=True)),
    "slope 0 and ReLU": lambda: nn.Sequential(nn.Linear(INPUTS, 9), nn.ReLU(), nn.Linear(9, 9), nn.LeakyReLU(0.0),
                                              nn.Linear(9, OUTPUTS)),
    "named": lambda: nn.Sequential(OrderedDict(one=nn.Linear(INPUTS, 9), active=nn.ReLU(), two=nn.Linear(9, OUTPUTS))),
    "widest": lambda: nn.Sequential(nn.Linear(INPUTS, _WIDEST), nn.ReLU(), nn.Linear(_WIDEST, OUTPUTS)),
    "normflows": lambda: normflows.nets.MLP([INPUTS, 33, 20, OUTPUTS]),
    "normflows leaky": lambda: normflows.nets.MLP([INPUTS, 33, OUTPUTS], leaky=0.1),
    "zuko": lambda: zuko.nn.MLP(INPUTS, OUTPUTS, (33, 20)),
    "zuko leaky": lambda: zuko.nn.MLP(INPUTS, OUTPUTS, (33,), activation=nn.LeakyReLU),
}  # fmt: skip
LEFT = {
    "ELU": lambda: sequential(nn.ELU),
    "two slopes": lambda: nn.Sequential(nn.Linear(INPUTS, 9), nn.ReLU(), nn.Linear(9, 9), nn.LeakyReLU(),
                                        nn.Linear(9, OUTPUTS)),
    "negative slope": lambda: sequential(lambda: nn.LeakyReLU(-0.1)),
    "linear": lambda: nn.Sequential(nn.Linear(INPUTS, OUTPUTS)),
    "ends in ReLU": lambda: nn.Sequential(nn.Linear(INPUTS, 9), nn.ReLU(), nn.Linear(9, OUTPUTS), nn.ReLU()),
    "without bias": lambda: nn.Sequential(nn.Linear(INPUTS, 9, bias=False), nn.ReLU(), nn.Linear(9, OUTPUTS)),
    "two linear": lambda: nn.Sequential(nn.Linear(INPUTS, 9), nn.Linear(9, OUTPUTS), nn.ReLU()),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(INPUTS, 9, 1), nn.ReLU(), nn.Conv2d(9, OUTPUTS, 1)),
    "normflows dropout": lambda: normflows.nets.MLP([INPUTS, 33, OUTPUTS], dropout=0.1),
    "normflows tanh": lambda: normflows.nets.MLP([INPUTS, 33, OUTPUTS], output_fn="tanh"),
    "zuko stack": lambda: zuko.nn.MLP(INPUTS, OUTPUTS, (33,), stack=3),
    "zuko normalised": lambda: zuko.nn.MLP(INPUTS, OUTPUTS, (33,), normalize=True),
    "zuko masked": lambda: zuko.nn.MaskedMLP(torch.ones(OUTPUTS, INPUTS, dtype=torch.bool), (33,)),
    "empty": nn.Sequential,
    "with a hole": lambda: nn.Sequential(nn.Linear(INPUTS, 9), None, nn.Linear(9, OUTPUTS)),
    "own forward": lambda: Doubled(nn.Linear(INPUTS, 9), nn.ReLU(), nn.Linear(9, OUTPUTS)),
    "own linear": lambda: nn.Sequential(Linear(INPUTS, 9), nn.ReLU(), nn.Linear(9, OUTPUTS)),
}


class Doubled(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("name", CONDITIONERS)
def test_conditioners_agree_and_keep(name):
    original = perturbed(CONDITIONERS[name]())
    assert calls(assert_agrees(original, call, data()), data()) == 1
    assert_keeps(original, call, data())


@pytest.mark.parametrize("name", LEFT)
def test_other_networks_are_left(name):
    original = LEFT[name]()
    assert not any(map(is_fused, fuse(copy.deepcopy(original)).modules()))


def _coupling(net: Callable[[int, int], nn.Module]) -> nn.Module:
    class WithContext(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.net = net(inputs, outputs)

        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return self.net(x)

    return nflows.transforms.AffineCouplingTransform([0, 1, 0, 1, 0, 1], WithContext)


def _net(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


MODELS = {  # and how often a call in each direction calls a conditioner
    "nflows": (lambda: _coupling(_net), call, 1),
    "normflows": (lambda: normflows.flows.AffineCouplingBlock(normflows.nets.MLP([3, 32, 32, 6])), call, 1),
    "normflows inverse": (lambda: normflows.flows.AffineCouplingBlock(normflows.nets.MLP([3, 32, 32, 6])),
                          lambda model, x: model.inverse(x), 1),
    "FrEIA GLOW": (lambda: FrEIA.modules.GLOWCouplingBlock([(INPUTS,)], subnet_constructor=_net),
                   lambda model, x: model([x]), 2),
    "FrEIA AllInOne": (lambda: FrEIA.modules.AllInOneBlock([(INPUTS,)], subnet_constructor=_net),
                       lambda model, x: model([x], rev=True), 1),
    "zuko": (lambda: zuko.flows.RealNVP(INPUTS, transforms=2, hidden_features=(32, 32)),
             lambda model, x: model().log_prob(x), 2),
    "zuko inverse": (lambda: zuko.flows.RealNVP(INPUTS, transforms=2, hidden_features=(32, 32)),
                     lambda model, x: model.transform().inv(x), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    make, compute, count = MODELS[name]
    fused = assert_agrees(perturbed(make(), 0.2), compute, data(), in_the_mean=True)
    assert calls(compute, fused, data()) == count
    x = data(_FEWEST_ROWS - 1)
    assert calls(compute, fused, x) == 0


def _hook(*_: object) -> None:
    return None


def outcome(function: Callable, *given: object) -> object:
    try:
        return function(*given)
    except Exception as error:  # whatever PyTorch raises
        return type(error), str(error)


def _meta(net: nn.Sequential) -> None:
    net[2].to("meta")


@pytest.mark.parametrize(("change", "x"), [
    (replacing(0, lambda: nn.Linear(INPUTS + 1, 33)), torch.zeros(ROWS, INPUTS)),
    (replacing(2, lambda: nn.Linear(32, 20)), torch.zeros(ROWS, INPUTS)),
    (lambda net: None, torch.zeros(ROWS, INPUTS - 1)), (lambda net: None, torch.zeros(ROWS, INPUTS).double()),
    (lambda net: net[2].double(), torch.zeros(ROWS, INPUTS)), (_meta, torch.zeros(ROWS, INPUTS)),
    (lambda net: setattr(net[2], "bias", nn.Parameter(torch.zeros(19))), torch.zeros(ROWS, INPUTS)),
    (lambda net: None, torch.zeros(ROWS, INPUTS).long()), (lambda net: None, torch.zeros(())),
    (lambda net: None, None)])  # fmt: skip
def test_mistakes_raise_what_pytorch_raises(change, x):
    fused, original = pair(change)
    expected = outcome(original, x)
    assert isinstance(expected, tuple)
    assert outcome(fused, x) == expected


def test_a_bias_for_all_outputs_is_pytorchs():
    """F.linear lets one number stand for all."""
    fused, original = pair(lambda net: setattr(net[2], "bias", nn.Parameter(torch.ones(1))))
    assert_left(fused, original, data())


@pytest.mark.parametrize("shape", [(INPUTS,), (3, 40, INPUTS), (2, 5, 10, INPUTS), (0, INPUTS), (3, 0, INPUTS),
                                   (_FEWEST_ROWS - 1, INPUTS), (_FEWEST_ROWS, INPUTS)], ids=str)  # fmt: skip
def test_shapes(shape):
    fused, original = pair()
    x = torch.randn(shape, requires_grad=True)
    rows = x.numel() // INPUTS
    assert calls(fused, x) == (rows >= _FEWEST_ROWS)
    results = [net(x) for net in (fused, original)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), x) for each in results))


@pytest.mark.parametrize("layout", ["strided", "transposed", "offset"])
def test_inputs_of_three_dims_in_any_memory(layout):
    fused, original = pair()
    x = relayout(torch.randn(5, 30, INPUTS), layout)
    assert calls(fused, x) == 1
    torch.testing.assert_close(fused(x), original(x))
    x = torch.randn(30, INPUTS).expand(5, 30, INPUTS)
    torch.testing.assert_close(fused(x), original(x))


def test_wider_networks_are_pytorchs():
    for widths in ((_WIDEST + 1, 9, 5), (6, _WIDEST + 1, 5), (6, 9, _WIDEST + 1)):
        original = nn.Sequential(nn.Linear(*widths[:2]), nn.ReLU(), nn.Linear(*widths[1:]))
        assert_left(fuse(copy.deepcopy(original)), original, torch.randn(ROWS, widths[0]))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("widths", [(0, 9, 5), (6, 0, 5), (6, 9, 0)], ids=str)
def test_layers_without_features_are_pytorchs(widths):
    original = nn.Sequential(nn.Linear(*widths[:2]), nn.ReLU(), nn.Linear(*widths[1:]))
    fused, x = fuse(copy.deepcopy(original)), torch.randn(ROWS, widths[0])
    assert_left(fused, original, x)
    fused(x).sum().backward()
    assert all(each.grad is not None for each in fused.parameters())


class Loud(Tensor):
    """A tensor with an arithmetic of its own."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        return 2 * result.as_subclass(Tensor) if function is torch.nn.functional.linear else result


def test_tensors_with_an_arithmetic_of_their_own_are_pytorchs():
    loud = nn.Parameter(torch.ones(33, INPUTS).as_subclass(Loud))
    fused, original = pair(lambda net: setattr(net[0], "weight", loud))
    assert_left(fused, original, data())
    assert_left(*pair(), data().as_subclass(Loud))


def test_tied_parameters():
    def tied() -> nn.Sequential:
        shared, last = nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, INPUTS)
        last.weight = shared.weight
        return nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), last)

    fused = assert_agrees(tied(), call, data())
    assert len(list(fused.parameters())) == 3
    assert_keeps(tied(), call, data())


def test_a_training_step_moves_what_is_called():
    (fused, original), x = pair(), data()
    for net in (fused, original):
        optimiser = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(3):
            optimiser.zero_grad()
            net(x).square().mean().backward()
            optimiser.step()
    torch.testing.assert_close(fused(x), original(x), rtol=1e-4, atol=1e-4)


def test_nan_stays_in_its_row():
    (fused, original), x = pair(), data()
    x[3, 0], x[90, 5] = float("nan"), float("inf")
    torch.testing.assert_close(fused(x), original(x), equal_nan=True)
    assert (~fused(x).isfinite()).any(1).nonzero().flatten().tolist() == [3, 90]


def test_containers():
    (fused, original), x = pair(), data()
    assert len(fused) == 5
    assert type(fused[0]) is nn.Linear
    assert [type(each) for each in fused] == [type(each) for each in original]
    assert fused[-1] is next(reversed(list(fused.children())))
    for part in (slice(3), slice(2), slice(1, None), slice(0)):
        mine, theirs, given = fused[part], original[part], x if part.start is None else torch.randn(ROWS, 33)
        assert isinstance(mine, nn.Sequential)
        assert repr(mine) == repr(theirs)
        torch.testing.assert_close(mine(given), theirs(given))
    assert calls(fused[:3], x) == 1
    assert type(unfuse(fused[:3])) is nn.Sequential
    del fused[-2:], original[-2:]
    torch.testing.assert_close(fused(x), original(x))
    assert calls(fused, x) == 1
    assert torch.equal((fused + nn.Sequential(nn.Tanh()))(x), fused(x).tanh())
    assert len(fused * 2) == 6


def test_fused_twice_and_told_of(caplog):
    model = nn.ModuleDict({"one": sequential(), "two": nn.ModuleList([sequential(nn.LeakyReLU), LEFT["ELU"]()])})
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="fastflow"):
            fuse(model)
        assert caplog.messages == ["fuse: 0 of 0 layers of the flow are fused, and 2 conditioners"]
    assert [type(each) for each in unfuse(model).modules() if isinstance(each, nn.Sequential)] == 3 * [nn.Sequential]


def test_with_a_hook_inside_when_fused_it_is_left():
    net = sequential()
    net[0].register_forward_hook(_hook)
    assert not is_fused(fuse(net))
    net = sequential()
    net.register_forward_hook(_hook)
    assert not is_fused(fuse(net))
