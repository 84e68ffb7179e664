"""Where the class means of a Gaussian mixture may start: [K, D] each, those that need no flow.

Source: Izmailov et al. 2020 (FlowGMM, arXiv 1912.13025) and its public code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastflow.ops._checks import check_labels


def random_means(classes: int, features: int, radius: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """radius N(0, I): FlowGMM's for images with radius 1, for vectors with 0.56."""
    return radius * torch.randn(classes, features, generator=generator)


def antipodal_means(features: int, norm: float = 3.75, generator: torch.Generator | None = None) -> Tensor:
    """Two means, opposite to each other in a random direction: FlowGMM's for vectors of two classes."""
    direction = torch.randn(features, generator=generator)
    mean = norm * direction / direction.norm()
    return torch.stack([mean, -mean])


def circle_means(classes: int, radius: float = 3.5, start: float = 0.0) -> Tensor:
    """[K, 2], evenly on a circle from the angle `start` (radians): FlowGMM's for toy data."""
    angles = start + 2 * math.pi * torch.arange(classes, dtype=torch.float64) / classes
    return (radius * torch.stack([angles.cos(), angles.sin()], dim=1)).float()


def constant_means(classes: int, features: int, radius: float = 1.0) -> Tensor:
    """The same number in every dimension: radius (k - (K - 2) / 2), rounded down; radius (k - 4) for ten classes."""
    return radius * (torch.arange(classes) - (classes - 2) // 2).float()[:, None].repeat(1, features)


def block_means(classes: int, features: int, radius: float = 1.0) -> Tensor:
    """radius in a class's own floor(D / K) dimensions, 0 elsewhere. Raises ValueError for D < K."""
    if features < classes:
        raise ValueError(f"block_means: features is {features}, expected at least one a class, {classes}")
    width = features // classes
    blocks = torch.eye(classes).repeat_interleave(width, dim=1)
    return radius * torch.cat([blocks, torch.zeros(classes, features - classes * width)], dim=1)


def class_averages(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[K, *shape] means of the rows of values [B, *shape] with each label; rows of label -1 are left out.

    Raises ValueError where a class has no row.
    """
    check_labels("class_averages", "labels", labels, len(values), classes, unlabelled=True)
    member = (labels[:, None] == torch.arange(classes, device=labels.device)).to(values)
    counts = member.sum(0)
    if not counts.all():
        raise ValueError(f"class_averages: labels have no row of class {int((counts == 0).nonzero()[0])}, expected at "
                         f"least one of each of {classes} classes")
    sums = member.mT @ values.flatten(1)  # not index_add, whose order of summation a GPU leaves open
    return (sums / counts[:, None]).view(classes, *values.shape[1:])
