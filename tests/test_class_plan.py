"""Which flows a class head reads, which it calls with the batch repeated, and that it says why."""

import copy
import re

import pytest
import torch
from bijections import scatter
from flow_head_cases import CLASSES, FLOWS, Ops, coupling, make_head, repeated

import fastflow
from fastflow.models import conditional_flow
from fastflow.nn import ActNorm, AffineCoupling, FactorOut, FlowClassHead, FlowSequential, ResidualMLP, Split
from fastflow.ops import ScaleMap


def _with_hook(head):
    head.flow.layers[3].conditioner.blocks[0].first.register_forward_hook(lambda *_: None)


def _with_dropout(head):
    head.flow.layers[3].conditioner.blocks[0].dropout.p = 0.1


def _subclassed(head):
    class Mine(ResidualMLP):
        pass

    head.flow.layers[3].conditioner.__class__ = Mine


def _replaced(head):
    head.flow.layers[0].forward = type(head.flow.layers[0]).forward.__get__(head.flow.layers[0])


def _normed(head):
    torch.nn.utils.parametrizations.weight_norm(head.flow.layers[2].conditioner.output)


def _other_block(head):
    head.flow.layers[2].conditioner.blocks[0] = torch.nn.Identity()


def _without_bias(head):
    head.flow.layers[2].conditioner.input.bias = None


OBSTACLES = {
    "hook inside": (_with_hook, r"layer 3 \(AffineCoupling\) .* a Linear, expected a Linear without hooks"),
    "hook of the flow": (lambda head: head.flow.register_forward_pre_hook(lambda *_: None),
                         "the flow is a FlowSequential with a hook"),
    "dropout": (_with_dropout, "layer 3 .* dropout is active"),
    "subclass": (_subclassed, "layer 3 .* has a Mine as conditioner, expected a ResidualMLP"),
    "replaced forward": (_replaced, r"layer 0 \(ActNorm\) .* a hook or a forward of its own"),
    "parametrization": (_normed, "layer 2 .* with a ParametrizedLinear, expected a Linear"),
    "another block": (_other_block, "layer 2 .* has a conditioner with a Identity, expected a _ResidualBlock"),
    "no bias": (_without_bias, "layer 2 .* has a conditioner of other sizes"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_has_to_be_called_is_called(name):
    change, reason = OBSTACLES[name]
    head, z = make_head(FLOWS["two levels"]()), torch.randn(4, 8, dtype=torch.float64)
    change(head)
    assert re.match(reason, head.unfused)
    torch.manual_seed(1)
    with Ops() as ops:
        found = head.scores(z)
    assert not ops.of("residual_coupling")
    torch.manual_seed(1)
    assert torch.equal(found, repeated(head, z))
    assert reason.split(" ")[0] in repr(head)


@pytest.mark.parametrize(("flow", "reason"), [
    (lambda: FlowSequential([coupling(6, scale_map=ScaleMap("tanh", gain=torch.ones(3)))], (6,)), "learned gain"),
    (lambda: FlowSequential([coupling(6, packing="shift_scale")], (6,)), "another packing"),
    (lambda: FlowSequential([AffineCoupling(ResidualMLP(6, 12, 6, 1, 0.0, 3), Split.checkerboard((6,)))], (6,)),
     "has the split Split.checkerboard"),
    (lambda: FlowSequential([AffineCoupling(lambda x, c: torch.zeros(len(x), 6, dtype=x.dtype))], (6,)),
     "has a function as conditioner"),
    (lambda: FlowSequential([ActNorm(6), FactorOut(), coupling(2)], (6,)), "comes before the first coupling"),
    (lambda: FlowSequential([ActNorm(6)], (6,)), "no layer depends on the class"),
    (lambda: coupling(6), "flow is a AffineCoupling, expected a FlowSequential"),
])
def test_flows_without_a_plan(flow, reason):
    head = scatter(FlowClassHead(flow(), 6, CLASSES)).double()
    z = torch.randn(4, 6, dtype=torch.float64)
    assert reason in head.unfused
    torch.testing.assert_close(head.scores(z), repeated(head, z))


def test_dropout_matters_in_training_alone():
    head = make_head(conditional_flow(8, CLASSES, levels=1, steps=1, hidden=6, blocks=1, dropout=0.5))
    assert "dropout" in head.unfused
    assert head.eval().unfused == ""


def test_other_reasons():
    head, z = make_head(FLOWS["two levels"](), dtype=torch.float32), torch.randn(4, 8)
    with fastflow.backend("reference"):
        assert "backend 'reference'" in head.unfused
        expected = head.scores(z)
    torch.testing.assert_close(head.scores(z), expected)
    with torch.autocast("cpu", torch.float16):
        assert "float16" in head.unfused
    assert "bfloat16" in copy.deepcopy(head).bfloat16().unfused
