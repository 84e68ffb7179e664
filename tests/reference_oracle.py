"""A tiny checkpoint of the public SCNF code, and what benchmarks/scnf_reference.py computes from it in float64.

Weights are a formula of their name's place, so that no file need be stored.
"""

import math
import re

import torch
from scnf_reference import SCNFReference
from torch import Tensor

CLASSES, CONTEXT = 3, 4
PROBABILITIES = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / 6


def reference() -> SCNFReference:
    """The model of 8 x 8 images that the checkpoint is of, its weights still to load."""
    return SCNFReference(8, hidden=4, head_hidden=5, steps=2, classes=CLASSES, context_features=CONTEXT,
                         probabilities=PROBABILITIES).double()


def checkpoint() -> dict[str, Tensor]:
    """A float64 state_dict, as DataParallel names it: element i of the k-th name is a sine of both, mixes and
    embedding lie round the identity, masks and constants are what the code puts there."""
    state = {re.sub(r"^flow\.", "flow.module.", name): value for name, value in reference().state_dict().items()}
    for k, name in enumerate(sorted(state)):
        if name.endswith((".mask", ".mean", "requires_init")):
            continue
        shape = state[name].shape
        wave = 0.05 * torch.sin(0.7 * torch.arange(math.prod(shape), dtype=torch.float64) + 1.3 * k).view(shape)
        around_identity = name.endswith((".W", "embeddings.weight"))
        state[name] = wave + torch.eye(*shape, dtype=torch.float64) if around_identity else wave
    return state


def images(rows: int = 3, size: int = 8) -> Tensor:
    """[rows, 1, size, size] float64 in (0, 1)."""
    return ((torch.arange(rows * size * size) * 37 % 101).double().view(rows, 1, size, size) + 0.5) / 101


@torch.no_grad()
def evaluate(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z [B, D], z_h [B, K, d], log_joint [B, K]) of the tiny model, in float64."""
    model = reference()
    model.load_state_dict({name.replace("flow.module.", "flow."): value for name, value in state.items()})
    z = model.flow(x)[1]
    z_f = z[:, -model.prior.features:]
    z_h = [model.prior.flow(z_f, torch.full((len(x),), label))[1] for label in range(CLASSES)]
    return z, torch.stack(z_h, 1), model.log_joint(x)
