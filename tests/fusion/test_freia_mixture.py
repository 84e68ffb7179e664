"""FrEIA's GaussianMixtureModel, whose parameters are its conditions."""

import copy

import pytest
import torch
from agreement import assert_keeps, leaves, outputs_and_gradients
from freia_cases import M
from torch import Tensor, nn

from fastflow.fusion import fuse

D, K = 3, 4
COMPONENTS = {"all": None, "seed": 5, "given": [3, 0, 1, 2, 2, 0, 3]}


def call(component: str, rev: bool = False, jac: bool = True):
    def run(layer: nn.Module, x: Tensor, weights: Tensor, mean: Tensor, entries: Tensor) -> tuple:
        chosen = COMPONENTS[component]
        if isinstance(chosen, list):
            chosen = torch.tensor(chosen, dtype=torch.int32)[: len(x)]
        return layer([x], [weights, mean, entries, chosen], rev=rev, jac=jac)

    return run


def inputs(rows: int, component: str, rev: bool) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    x = torch.randn(rows, *((K, D) if component == "all" and rev else (D,)))
    return x, torch.rand(rows, K).softmax(1), torch.randn(rows, K, D), 0.5 * torch.randn(rows, K, D * (D + 1) // 2)


@pytest.mark.parametrize("rev", [False, True], ids=["forward", "rev"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_agrees_with_the_original(component, rev):
    layer = M.GaussianMixtureModel([(D,)], dims_c=[(K,), (K, D), (K, D * (D + 1) // 2), ()])
    fused, given, run = fuse(copy.deepcopy(layer)), inputs(7, component, rev), call(component, rev)
    torch.testing.assert_close(outputs_and_gradients(fused, run, given), outputs_and_gradients(layer, run, given))
    double = leaves(run(fused, *(each.double() for each in given)))  # for which the original on PyPI has no code
    torch.testing.assert_close([each.float() for each in double], leaves(run(layer, *given)))
    assert run(fused, *given)[0][0].dtype == torch.float32
    empty = run(fused, *inputs(0, component, rev))
    assert [each.shape[0] for each in leaves(empty)] == [0, 0]
    assert call(component, rev, jac=False)(fused, *given)[1] is None


def test_everything_else_stays():
    layer = M.GaussianMixtureModel([(D,)], dims_c=[(K,), (K, D), (K, D * (D + 1) // 2), ()])
    assert_keeps(layer, call("seed"), *inputs(4, "seed", rev=False))
