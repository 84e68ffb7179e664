"""Flows of couplings, recorded and reversible, for the tests of reversible training."""

import torch
from torch import nn

from fastflow.nn import AffineCoupling, FlowSequential, Split
from fastflow.ops import ScaleMap


def perceptron(features, made, width=32, dropout=0.0, norm=False):
    layers = [nn.Linear(features, width), nn.BatchNorm1d(width) if norm else nn.Identity(), nn.ReLU(),
              nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, made)]  # fmt: skip
    return nn.Sequential(*layers)


def tabular(steps=6, features=8, split=Split.halves, width=32, dropout=0.0, norm=False, scale_map=None, **options):
    torch.manual_seed(0)
    sides = ("odd", "even") if split == Split.interleaved else ("second", "first")
    settings = {} if scale_map is None else {"scale_map": scale_map}
    made = features // 2 if scale_map == ScaleMap("additive") else features
    layers = [AffineCoupling(perceptron(features // 2, made, width, dropout, norm), split(sides[i % 2]), **settings)
              for i in range(steps)]
    return FlowSequential(layers, (features,), **options)


def pair(build, dtype=torch.float32, **options):
    """The same flow, recorded and reversible."""
    recorded, reversible = build(), build(reversible=True, **options)
    reversible.load_state_dict(recorded.state_dict())
    return recorded.to(dtype), reversible.to(dtype)


def gradients(flow, x, context=None):
    """Of x, context, the running log_det and every parameter; the same noise each time."""
    x = x.detach().clone().requires_grad_()
    context = None if context is None else context.detach().clone().requires_grad_()
    running = torch.zeros(len(x), dtype=x.dtype).requires_grad_()
    torch.manual_seed(1)
    z, log_det = flow(x, context, running)
    loss = (z * z.sin()).mean() - (log_det * torch.arange(1.0, len(x) + 1).to(x)).mean()
    named = {"x": x, "running": running} | ({} if context is None else {"context": context})
    named |= dict(flow.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
