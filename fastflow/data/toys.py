"""Classes of points in the plane, drawn anew for every seed: the toy sets of SCNF and FlowGMM."""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import make_circles, make_moons

from fastflow.data.vectors import VectorData

_CLASS_OF_GAUSSIAN = np.array([1, 2, 2, 2, 0, 0, 1, 1])  # counter-clockwise from the right, as FlowGMM labels them


def moons(train: int = 1000, test: int = 500, noise: float = 0.05, seed: int = 0) -> VectorData:
    """Two interleaved half circles, by `sklearn.datasets.make_moons`: float32 [N, 2], 2 classes.

    The defaults are the points of FlowGMM; SCNF has `noise` 0.1. Raises ValueError for counts below the classes.
    """
    return _drawn("moons", 2, train, test, seed,
                  lambda rows, random: make_moons(rows, noise=noise, random_state=random))


def circles(train: int = 1000, test: int = 500, noise: float = 0.05, factor: float = 0.4, seed: int = 0) -> VectorData:
    """A unit circle around one of radius `factor`, by `sklearn.datasets.make_circles`: float32 [N, 2], 2 classes.

    The defaults are the points of FlowGMM; SCNF has `noise` 0.1 and `factor` 0.2. Raises as `moons`.
    """
    return _drawn("circles", 2, train, test, seed,
                  lambda rows, random: make_circles(rows, noise=noise, factor=factor, random_state=random))


def eight_gaussians(train: int = 1000, test: int = 500, seed: int = 0) -> VectorData:
    """Eight Gaussians on a circle of radius 4 / 1.414, standard deviation 0.5 / 1.414: float32 [N, 2], 3 classes.

    Points as in FFJORD (Grathwohl et al. 2019, https://github.com/rtqichen/ffjord), classes of neighbouring Gaussians
    as in FlowGMM. Raises as `moons`.
    """
    def draw(rows, random):
        which = random.permutation(rows) % 8
        angle = which * np.pi / 4
        centres = 4.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return (centres + 0.5 * random.standard_normal((rows, 2))) / 1.414, _CLASS_OF_GAUSSIAN[which]

    return _drawn("eight-gaussians", 3, train, test, seed, draw)


def pinwheel(train: int = 1000, test: int = 500, seed: int = 0) -> VectorData:
    """Five arms that bend with the distance from the centre, a class each: float32 [N, 2].

    Source: Johnson et al. 2016, https://github.com/mattjj/svae, with the widths of FFJORD. Raises as `moons`.
    """
    def draw(rows, random):
        arm = random.permutation(rows) % 5
        along, across = random.standard_normal((rows, 2)).T * [[0.3], [0.1]] + [[1.0], [0.0]]
        angle = arm * 2 * np.pi / 5 + 0.25 * np.exp(along)
        turned = [along * np.cos(angle) + across * np.sin(angle), across * np.cos(angle) - along * np.sin(angle)]
        return 2.0 * np.stack(turned, axis=1), arm

    return _drawn("pinwheel", 5, train, test, seed, draw)


def _drawn(name: str, classes: int, train: int, test: int, seed: int, draw: Callable) -> VectorData:
    """Training points, then test points, from one generator."""
    for part, rows in (("train", train), ("test", test)):
        if rows < classes:
            raise ValueError(f"{name}: {part} is {rows}, expected at least {classes}: a point a class")
    random, arrays = np.random.RandomState(seed), {}  # scikit-learn takes no Generator
    for part, rows in (("train", train), ("test", test)):
        points, labels = draw(rows, random)
        arrays[f"{part}_features"] = torch.from_numpy(points.astype(np.float32))
        arrays[f"{part}_labels"] = torch.from_numpy(labels.astype(np.int64))
    return VectorData(name, classes, **arrays)
