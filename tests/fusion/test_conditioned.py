"""Couplings and the MLPs that parametrise them as one node: against the original, and where it must not be one."""

import copy
from collections.abc import Callable

import pytest
import torch
from agreement import assert_agrees, perturbed
from peers import FrEIA, normflows, zuko
from torch import Tensor, nn

import fastflow
from fastflow.fusion import conditioned, mlp
from fastflow.fusion.freia import block_node

ROWS, FEATURES = 80, 7


def net(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 33), nn.LeakyReLU(0.1), nn.Linear(33, 5), nn.LeakyReLU(0.1),
                         nn.Linear(5, outputs))


def _normflows(scale_map: str, split_mode: str) -> Callable:
    ends = (3, 8) if split_mode == "channel_inv" else (4, 6)
    return lambda: normflows.flows.AffineCouplingBlock(net(*ends), scale_map=scale_map, split_mode=split_mode)


def _freia(name: str, **options) -> Callable:
    return lambda: getattr(FrEIA.modules, name)([(FEATURES,)], subnet_constructor=net, **options)


def _zuko(mask: list[int]) -> Callable:
    return lambda: zuko.flows.GeneralCouplingTransform(FEATURES, mask=torch.tensor(mask).bool(),
                                                       hidden_features=(33, 5))


def _of_normflows(module: nn.Module, x: Tensor, rev: bool) -> tuple:
    return module.forward(x) if rev else module.inverse(x)


def _of_freia(module: nn.Module, x: Tensor, rev: bool) -> tuple:
    return module([x], rev=rev)


def _of_zuko(module: nn.Module, x: Tensor, rev: bool) -> tuple:
    transform = module(None)
    return (transform.inv if rev else transform).call_and_ladj(x)


CASES = {
    **{f"normflows-{scale_map}-{mode}": (_normflows(scale_map, mode), _of_normflows)
       for scale_map in ("exp", "sigmoid", "sigmoid_inv") for mode in ("channel", "channel_inv")},
    "normflows-MLP": (lambda: normflows.flows.AffineCouplingBlock(normflows.nets.MLP([4, 33, 5, 6], leaky=0.1)),
                      _of_normflows),
    "GLOW": (_freia("GLOWCouplingBlock"), _of_freia),
    "GLOW-tanh": (_freia("GLOWCouplingBlock", clamp_activation="TANH", split_len=2), _of_freia),
    "RNVP": (_freia("RNVPCouplingBlock"), _of_freia),
    "one-sided": (_freia("AffineCouplingOneSided"), _of_freia),
    **{f"AllInOne-{label}": (_freia("AllInOneBlock", **options), _of_freia) for label, options in (
        ("hard", {}), ("soft", {"permute_soft": True, "global_affine_type": "SIGMOID"}),
        ("reverse", {"reverse_permutation": True, "global_affine_type": "EXP"}),
        ("learned", {"learned_householder_permutation": 3}))},
    "zuko-halves": (_zuko([1, 1, 1, 1, 0, 0, 0]), _of_zuko),
    "zuko-alternating": (_zuko([0, 1, 0, 1, 0, 1, 0]), _of_zuko),
    "zuko-scattered": (_zuko([0, 0, 1, 0, 1, 1, 0]), _of_zuko),
}
every_case = pytest.mark.parametrize(("make", "call"), CASES.values(), ids=CASES)


@pytest.fixture
def nodes(monkeypatch) -> list:
    """The networks that nodes have run."""
    found = []

    def run(networks, x, parameters):
        found.append(networks)
        return real(networks, x, parameters)

    real = conditioned.run
    monkeypatch.setattr(conditioned, "run", run)
    monkeypatch.setattr(block_node, "run", run)
    return found


@every_case
@pytest.mark.parametrize("rev", [False, True])
def test_outputs_and_gradients(nodes, make, call, rev):
    layer = perturbed(make())
    assert_agrees(layer, lambda module, x: call(module, x, rev), torch.randn(ROWS, FEATURES))
    one_node = not (rev and isinstance(layer, FrEIA.modules.AllInOneBlock))  # its way back is several nodes
    assert bool(nodes) == one_node


@every_case
@pytest.mark.parametrize("of", ["z", "log_det"])
def test_gradients_of_one_output(nodes, make, call, of):
    original = perturbed(make()).double()
    x = torch.randn(ROWS, FEATURES, dtype=torch.float64)

    def gradients(module: nn.Module) -> tuple[Tensor, ...]:
        given = x.clone().requires_grad_()
        wanted = [given, *(each for each in module.parameters() if each.requires_grad)]
        value = call(module, given, False)[of == "log_det"]
        value = value[0] if isinstance(value, tuple) else value
        return torch.autograd.grad(value.square().sum(), wanted, materialize_grads=True)

    torch.testing.assert_close(gradients(fastflow.fuse(copy.deepcopy(original))), gradients(original))
    assert nodes


@every_case
@pytest.mark.parametrize("of", ["both", "z", "log_det"])
def test_second_derivatives(nodes, make, call, of):
    original = perturbed(make()).double()
    fused = fastflow.fuse(copy.deepcopy(original))
    x = torch.randn(ROWS, FEATURES, dtype=torch.float64)

    def second(module: nn.Module) -> list[Tensor | None]:
        given = x.clone().requires_grad_()
        wanted = [given, *(each for each in module.parameters() if each.requires_grad)]
        z, log_det = call(module, given, False)
        value = 0.0 if of == "log_det" else (z[0] if isinstance(z, tuple) else z).square().sum()
        value = value if of == "z" else value + log_det.square().sum()
        grads = torch.autograd.grad(value, wanted, create_graph=True, materialize_grads=True)
        return torch.autograd.grad(sum(each.square().sum() for each in grads), wanted, allow_unused=True)

    found, expected = second(fused), second(original)
    largest = max(each.abs().max().item() for each in expected if each is not None)
    for mine, theirs in zip(found, expected, strict=True):
        if mine is None or theirs is None:
            assert all(each is None or not each.any() for each in (mine, theirs))
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12 * largest)
    assert nodes


def glow() -> nn.Module:
    return fastflow.fuse(perturbed(FrEIA.modules.GLOWCouplingBlock([(FEATURES,)], subnet_constructor=net)))


def result(block: nn.Module, x: Tensor) -> tuple:
    (z,), log_det = block([x])
    return z, log_det


def test_hooks_of_a_conditioner_and_of_its_parts_are_called(nodes):
    for part in ("subnet1", "subnet1.0", "subnet2.3"):
        block, calls, x = glow(), [], torch.randn(ROWS, FEATURES)
        expected = result(block, x)
        block.get_submodule(part).register_forward_hook(lambda *args, calls=calls: calls.append(1))
        nodes.clear()
        torch.testing.assert_close(result(block, x), expected)
        assert (len(calls), len(nodes)) == (1, 1), part  # the other side is one node still


def test_few_rows_frozen_parameters_and_no_gradients(nodes):
    block = glow()
    few = torch.randn(mlp._FEWEST_ROWS - 1, FEATURES)
    result(block, few)
    with torch.no_grad():
        result(block, torch.randn(ROWS, FEATURES))
    assert not nodes
    for parameter in block.subnet2.parameters():
        parameter.requires_grad_(False)
    z, log_det = result(block, torch.randn(ROWS, FEATURES))
    (z.sum() + log_det.sum()).backward()
    assert len(nodes) == 2
    assert all(each.grad is None for each in block.subnet2.parameters())
    assert all(each.grad.any() for each in block.subnet1.parameters())


def test_a_conditioner_with_the_wrong_number_of_outputs_is_refused_as_ever(nodes):
    block = glow()
    block.subnet1[4] = nn.Linear(5, 9)
    with pytest.raises(ValueError, match="affine_coupling_packed: parameters has shape"):
        result(block, torch.randn(ROWS, FEATURES))


@every_case
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_gradient_that_comes_in_is_not_written_to(nodes, make, call, create_graph):
    layer, x = fastflow.fuse(perturbed(make())), torch.randn(ROWS, FEATURES, requires_grad=True)
    z, log_det = call(layer, x, False)
    grads = torch.randn(ROWS, FEATURES), torch.randn(ROWS)
    given = [each.clone() for each in grads]
    torch.autograd.grad((z[0] if isinstance(z, tuple) else z, log_det), x, given, create_graph=create_graph)
    assert nodes
    assert all(torch.equal(*pair) for pair in zip(grads, given, strict=True))


@every_case
def test_gradients_in_batches(nodes, make, call):
    original = perturbed(make()).double()
    fused = fastflow.fuse(copy.deepcopy(original))
    x = torch.randn(ROWS, FEATURES, dtype=torch.float64)

    def jacobians(module: nn.Module) -> list[Tensor]:
        given = x.clone().requires_grad_()
        wanted = [given, *(each for each in module.parameters() if each.requires_grad)]
        z, log_det = call(module, given, False)
        z = z[0] if isinstance(z, tuple) else z
        batch = torch.eye(3, z.numel(), dtype=z.dtype).view(3, *z.shape), torch.eye(3, ROWS, dtype=z.dtype)
        by_vmap = torch.vmap(lambda *grads: torch.autograd.grad((z, log_det), wanted, grads, retain_graph=True))(*batch)
        at_once = torch.autograd.grad((z, log_det), wanted, batch, is_grads_batched=True, retain_graph=True)
        of_log_det = torch.autograd.grad(log_det, given, batch[1], is_grads_batched=True)
        return [*by_vmap, *at_once, *of_log_det]

    torch.testing.assert_close(jacobians(fused), jacobians(original))
    assert nodes


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo's
def test_a_conditioner_that_was_compiled_in_place_is_called(nodes):
    block = glow()
    block.subnet1.compile(backend="eager")
    result(block, torch.randn(ROWS, FEATURES))
    assert len(nodes) == 1
