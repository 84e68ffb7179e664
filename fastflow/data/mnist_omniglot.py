"""MNIST and Omniglot as one set of 32 x 32 images, which know what they were drawn from."""

import os

import torch
import torch.nn.functional as F

from fastflow.data.idx import MNIST, mnist
from fastflow.data.images import ImageData
from fastflow.data.official import Official
from fastflow.data.omniglot import OMNIGLOT, OMNIGLOT_SMALL, omniglot, omniglot_small

GROUPS = ("mnist", "omniglot")
_SIDE = 32


def _joint(omniglot: Official, name: str) -> Official:
    parts = (MNIST, omniglot)
    files = {f"{part.place or part.name}/{file}": digest for part in parts for file, digest in part.files.items()}
    rows = {part: sum(getattr(each, part) for each in parts) for part in ("train", "test")}
    return Official(name, f"{MNIST.url} and {omniglot.url}", files, classes=10, shape=(1, _SIDE, _SIDE), **rows,
                    place=".", of_content=True)


MNIST_OMNIGLOT = _joint(OMNIGLOT, "mnist-omniglot")
MNIST_OMNIGLOT_SMALL = _joint(OMNIGLOT_SMALL, "mnist-omniglot-small")


def mnist_omniglot(folder: str | os.PathLike | None = None) -> ImageData:
    """`mnist` padded with zeros, then `omniglot` shrunk, to images [1, 32, 32]: the groups "mnist" and "omniglot".

    The class is the digit; drawings of Omniglot have none, -1, in the test set too. `folder` holds mnist/ and
    omniglot/; None means $FASTFLOW_DATA. Raises as the two do.
    Source: Livne and Fleet 2018, "TzK Flow - Conditional Generative Model", arXiv 1811.01837.
    """
    return _load(MNIST_OMNIGLOT, folder, omniglot)


def mnist_omniglot_small(folder: str | os.PathLike | None = None) -> ImageData:
    """`mnist_omniglot` with `omniglot_small` in the place of `omniglot`."""
    return _load(MNIST_OMNIGLOT_SMALL, folder, omniglot_small)


def _load(official: Official, folder: str | os.PathLike | None, characters) -> ImageData:
    folder = official.folder(folder)
    digits, drawings, arrays = mnist(folder / "mnist"), characters(folder / "omniglot", _SIDE), {}
    pad = (_SIDE - digits.shape[-1]) // 2
    for part in ("train", "test"):
        images, drawn = F.pad(getattr(digits, f"{part}_images"), [pad] * 4), getattr(drawings, f"{part}_images")
        rows = torch.tensor([len(images), len(drawn)])
        arrays[f"{part}_images"] = torch.cat([images, drawn])
        arrays[f"{part}_labels"] = torch.cat([getattr(digits, f"{part}_labels"), torch.full((len(drawn),), -1)])
        arrays[f"{part}_groups"] = torch.arange(2).repeat_interleave(rows)
    return ImageData(official.name, 256, 10, **arrays, groups=GROUPS)
