"""All randomness of a run is a function of (seed, stream, step, row), so that resuming needs no generator's state."""

import numpy as np
import torch
from torch import Tensor

from fastflow.ops import uniform_noise

SEEDS = 2**32  # seeds lie below it; a stream is the upper half of the 64-bit key
ROWS, DROPOUT, DEQUANTIZE, VIEW, DEQUANTIZE_VIEW, EVALUATION, AUGMENT, OTHER, DEQUANTIZE_OTHER = range(9)
EVALUATION_LATENT, LATENT = 9, 10  # from LATENT on a stream for each latent


def uniform(shape: tuple[int, ...], *, seed: int, stream: int, step: int, rows: Tensor) -> Tensor:
    """Noise in [0, 1) on the device of `rows` [B], the global places of the rows of `shape` (B, ...)."""
    return uniform_noise(shape, seed=seed + SEEDS * stream, step=step, rows=rows)


def host_generator(seed: int, stream: int, step: int) -> np.random.Generator:
    """A NumPy generator for choices that are made on the host, before a batch exists."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64), counter=[0, step, 0, 0]))


def seed_dropout(seed: int, step: int, device: torch.device) -> None:
    """Sets PyTorch's own generator, which dropout draws from, to a state that depends on (seed, step) alone."""
    key = int(host_generator(seed, DROPOUT, step).integers(2**63))
    torch.cuda.manual_seed(key) if device.type == "cuda" else torch.default_generator.manual_seed(key)
