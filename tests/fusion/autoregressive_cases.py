"""Autoregressive layers of all libraries with their options, and how they are called."""

from functools import partial

import torch
from agreement import perturbed
from peers import nflows, normflows, zuko
from torch import Tensor, nn
from torch.nn import functional as F

D, C = 6, 3
ADJACENCY = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0],
                          [0, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]], dtype=torch.bool)
NFLOWS, NORMFLOWS = nflows.transforms.MaskedAffineAutoregressiveTransform, normflows.flows.MaskedAffineAutoregressive
ZUKO = zuko.flows.MaskedAutoregressiveTransform
nflows_layer, normflows_layer = partial(NFLOWS, D, 11), partial(NORMFLOWS, D, 11)
zuko_layer = partial(ZUKO, D, hidden_features=(11, 13))
CONTEXT = {"context_features": C}
FEEDFORWARD = {"use_residual_blocks": False}

# name: (the layer, the features of its context, how many stages its inverse has where that is certain)
CASES = {
    "nflows": (nflows_layer, 0, D),
    "nflows context": (partial(nflows_layer, **CONTEXT, activation=torch.tanh), C, D),
    "nflows narrow": (partial(NFLOWS, D, 3), 0, 4),
    "nflows feedforward": (partial(nflows_layer, **FEEDFORWARD, **CONTEXT, num_blocks=1, activation=F.elu), C, D),
    "nflows random masks": (partial(nflows_layer, **FEEDFORWARD, random_mask=True, activation=F.silu), 0, None),
    "nflows batch norm": (partial(nflows_layer, use_batch_norm=True, activation=nn.GELU()), 0, D),
    "nflows feedforward batch norm": (partial(nflows_layer, **FEEDFORWARD, use_batch_norm=True), 0, D),
    "nflows two features": (partial(NFLOWS, 2, 5), 0, 2),
    "nflows one feature": (partial(NFLOWS, 1, 5), 0, 1),
    "normflows": (normflows_layer, 0, D),
    "normflows context": (partial(normflows_layer, **CONTEXT, activation=torch.sigmoid), C, D),
    "normflows feedforward": (partial(normflows_layer, **FEEDFORWARD, activation=nn.Softplus(2.0)), 0, D),
    "normflows random masks": (partial(normflows_layer, **FEEDFORWARD, random_mask=True, use_batch_norm=True), 0, None),
    "zuko": (zuko_layer, 0, D),
    "zuko context": (partial(zuko_layer, C, activation=nn.ELU), C, D),
    "zuko residual": (partial(ZUKO, D, C, hidden_features=(11, 11, 7), residual=True, activation=nn.LeakyReLU), C, D),
    "zuko coupling": (partial(zuko_layer, passes=2), 0, 2),
    "zuko four passes": (partial(zuko_layer, C, passes=4, order=torch.tensor([2, 0, 1, 5, 3, 4])), C, 3),
    "zuko order": (partial(zuko_layer, order=torch.arange(D).flip(0)), 0, D),
    "zuko adjacency": (partial(zuko_layer, adjacency=ADJACENCY), 0, 3),
    "zuko adjacency of the context": (partial(zuko_layer, C, adjacency=torch.cat([ADJACENCY, torch.eye(D, C) > 0], 1)),
                                      C, 3),
    "zuko linear": (partial(ZUKO, D, hidden_features=()), 0, D),
    "zuko additive": (partial(zuko_layer, univariate=zuko.transforms.AdditiveTransform, shapes=[()]), 0, D),
    "zuko steep": (partial(zuko_layer, univariate=partial(zuko.transforms.MonotonicAffineTransform, slope=1e-5)), 0, D),
}
FEW = ("nflows context", "normflows context", "zuko context", "zuko additive")


def layer(name: str) -> nn.Module:
    """The layer of a case in eval mode, its parameters and statistics perturbed, so little that its inverse is tame."""
    module = perturbed(CASES[name][0](), 0.1).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    return module


def given(name: str, rows: int = 257) -> tuple[Tensor, ...]:
    """Its input [rows, features] and, if it has any, context."""
    features = {"nflows one feature": 1, "nflows two features": 2}.get(name, D)
    context = CASES[name][1]
    return (torch.randn(rows, features), *([torch.randn(rows, context)] if context else []))


def forward(module: nn.Module, x: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
    """(z, log_det) by one pass."""
    return module(*context).call_and_ladj(x) if hasattr(module, "hyper") else module(x, *context)


def inverse(module: nn.Module, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
    """(x, log_det)."""
    return module(*context).inv.call_and_ladj(z) if hasattr(module, "hyper") else module.inverse(z, *context)
