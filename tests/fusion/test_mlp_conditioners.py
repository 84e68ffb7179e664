"""An nn.Sequential of linear layers and rectifiers in a fused model: one op where it can be, else PyTorch's own."""

import copy
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from agreement import assert_agrees, assert_keeps, perturbed
from oracles import relayout
from peers import FrEIA, nflows, normflows, zuko
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastflow
from fastflow import _backend
from fastflow.fusion import fuse, unfuse
from fastflow.fusion.layer import is_fused
from fastflow.fusion.mlp import _FEWEST_ROWS, _WIDEST, Mlp

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


class Linear(nn.Linear):
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


def _set(place: int, part: Callable[[], nn.Module]) -> Callable[[nn.Sequential], object]:
    return lambda net: net.__setitem__(place, part())


def _forward_of_its_own(net: nn.Sequential) -> None:
    net[2].forward = lambda x: torch.nn.functional.linear(x, 2 * net[2].weight)


def _without_bias(net: nn.Sequential) -> None:
    net[2].bias = None


CHANGES = {
    "nested": _set(2, lambda: nn.Sequential(nn.Linear(33, 20))),
    "Tanh": _set(1, nn.Tanh),
    "another slope": _set(1, lambda: nn.LeakyReLU(0.2)),
    "own linear": _set(0, lambda: Linear(INPUTS, 33)),
    "own linear by class": lambda net: setattr(net[0], "__class__", Linear),
    "bilinear identity": _set(1, nn.Identity),
    "no bias": _set(4, lambda: nn.Linear(20, OUTPUTS, bias=False)),
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
    for change in (_set(1, lambda: nn.LeakyReLU(0.0)), _set(2, lambda: nn.Linear(33, 20)), nn.Module.double,
                   lambda net: net.extend([nn.ReLU(), nn.Linear(OUTPUTS, 7)]), lambda net: net[0].weight.data.mul_(2),
                   lambda net: net.requires_grad_(False),
                   lambda net: setattr(net[2], "bias", nn.Parameter(torch.zeros(20)))):
        fused, original = pair(change)
        x = data().to(original[0].weight.dtype)
        torch.testing.assert_close(fused(x), original(x))
        assert calls(fused, x) == 1


def outcome(function: Callable, *given: object) -> object:
    try:
        return function(*given)
    except Exception as error:  # whatever PyTorch raises
        return type(error), str(error)


def _meta(net: nn.Sequential) -> None:
    net[2].to("meta")


@pytest.mark.parametrize(("change", "x"), [
    (_set(0, lambda: nn.Linear(INPUTS + 1, 33)), torch.zeros(ROWS, INPUTS)),
    (_set(2, lambda: nn.Linear(32, 20)), torch.zeros(ROWS, INPUTS)),
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
