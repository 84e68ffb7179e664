"""Conditional flows of every shape that a class head reads, and what their scores are compared with."""

import torch
from bijections import scatter
from torch.utils._python_dispatch import TorchDispatchMode

from fastflow.models import conditional_flow
from fastflow.nn import (
    ActNorm,
    AffineCoupling,
    ChannelMix,
    FactorOut,
    FlowClassHead,
    FlowSequential,
    Permutation,
    ResidualMLP,
    Split,
)
from fastflow.ops import ScaleMap, flow_class_scores

CLASSES = 3
SIGMOID = ScaleMap("sigmoid", bias=2.0, eps=1e-3, shift_first=True)


def mix(features):
    generator = torch.Generator().manual_seed(features)
    weight = torch.linalg.qr(torch.randn(features, features, generator=generator, dtype=torch.float64)).Q
    return ChannelMix(features, weight=weight.float())


def coupling(features, active="second", passive=None, blocks=1, scale_map=SIGMOID, classes=CLASSES, **options):
    split = Split.halves(active, passive)
    net = ResidualMLP(split.passive_channels(features), 2 * split.active_channels(features), 6, blocks, 0.0, classes)
    return AffineCoupling(net, split, scale_map, **options)


def both(features, blocks=1):
    return [coupling(features, "first", blocks=blocks), coupling(features, "second", blocks=blocks)]


def tied():
    twice = coupling(6)
    return FlowSequential([mix(6), twice, Permutation.reverse(6), twice], (6,))


FLOWS = {
    "two levels": lambda: conditional_flow(8, CLASSES, levels=2, steps=2, hidden=6, blocks=1),
    "odd width, norm last": lambda: FlowSequential([ActNorm(7), mix(7), *both(7, 2), ActNorm(7)], (7,)),
    "one coupling a map, no blocks": lambda: FlowSequential(
        [mix(5), coupling(5, blocks=0), Permutation.reverse(5), coupling(5, "first", blocks=0), ActNorm(5)], (5,)),
    "many couplings in a row": lambda: FlowSequential(
        [*both(6), coupling(6, "first"), coupling(6, passive=2), coupling(6, passive=2)], (6,)),
    "the same half twice": lambda: FlowSequential([ActNorm(6), coupling(6), coupling(6), mix(6)], (6,)),
    "other scale maps": lambda: FlowSequential(
        [mix(6), coupling(6, scale_map=ScaleMap("tanh")), coupling(6, "first", scale_map=ScaleMap("exp")),
         ActNorm(6), coupling(6, scale_map=ScaleMap("softplus", eps=1e-2)),
         coupling(6, "first", scale_map=ScaleMap("soft_clip", clamp=1.5, shift_first=True))], (6,)),
    "factor out last": lambda: FlowSequential([coupling(8), FactorOut(), mix(4), coupling(4), FactorOut()], (8,)),
    "factor out twice": lambda: FlowSequential([*both(12), FactorOut(), FactorOut(), ActNorm(2), *both(2)], (12,)),
    "a coupling without the class": lambda: FlowSequential(
        [mix(6), coupling(6, classes=0, conditional=False), coupling(6, "first")], (6,)),
    "a layer twice": tied,
    "wide": lambda: FlowSequential([ActNorm(70), mix(70), *both(70), ActNorm(70)], (70,)),
    "reversible": lambda: FlowSequential(
        [ActNorm(6), mix(6), *both(6), ActNorm(6), *both(6)], (6,), reversible=True, keep_every=2),
}


def make_head(flow, classes=CLASSES, dtype=torch.float64, **options):
    head = FlowClassHead(flow, *flow.shape, classes, CLASSES, prior="learned", **options)
    return scatter(head, 0.3).to(dtype)


def repeated(head, z):
    """The definition: every row with every class through the flow, called."""
    return flow_class_scores(z, lambda *given: head.flow(*given), head.embedding, head.base.log_prob,
                             head.prior.log_prob())


def everything(head, scores, z, weights):
    return [scores, *torch.autograd.grad(scores, [z, *head.parameters()], weights, allow_unused=True)]


def assert_close(found, expected, bound=1e-9):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            size = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
            torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound * size)


class Ops(TorchDispatchMode):
    """(name, arguments) of this library's operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastflow":
            self.calls.append((function._opname, args))
        return function(*args, **(kwargs or {}))

    def of(self, name):
        return [args for each, args in self.calls if each == name]
