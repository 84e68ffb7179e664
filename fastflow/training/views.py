"""A second view of a batch: its images a little turned, moved, zoomed and sheared, its vectors with noise."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow.training.config import ViewConfig

NUMBERS = 6  # standard normal numbers that move one image


def affine_views(images: Tensor, numbers: Tensor, config: ViewConfig, levels: int) -> Tensor:
    """Grey levels uint8 [B, C, H, W] of `images` moved by `numbers` [B, 6], standard normal; outside is level 0.

    Image and view show the same class, but a view has another density: it belongs in class terms alone.
    """
    turn, shear, right, down, widen, heighten = numbers.unbind(1)
    turn, shear = turn * math.radians(config.rotation), shear * math.radians(config.shear)
    right, down = right * 2.0 * config.shift / images.shape[3], down * 2.0 * config.shift / images.shape[2]
    across = torch.stack([(1 + config.zoom * widen) * turn.cos(), shear - turn.sin(), right], dim=1)
    along = torch.stack([turn.sin(), (1 + config.zoom * heighten) * turn.cos(), down], dim=1)
    grid = F.affine_grid(torch.stack([across, along], dim=1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, align_corners=False)
    return moved.round().clamp(0, levels - 1).to(torch.uint8)


def noisy_views(vectors: Tensor, uniform: Tensor, config: ViewConfig) -> Tensor:
    """`vectors` [B, D] plus normal noise of standard deviation `config.noise`, made of `uniform` [B, D] in [0, 1)."""
    return vectors + config.noise * normal_numbers(uniform).to(vectors.dtype)


def normal_numbers(uniform: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones in [0, 1), multiples of 2^-24."""
    return torch.special.ndtri(uniform.double() + 2.0**-25).float()
