"""CIFAR-10: colour images 32x32 in pickled batches, read without running code from them."""

import os
import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastflow.data.images import ImageData
from fastflow.data.official import Official

CIFAR10 = Official(
    "cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz (unpacked)",
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f", "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751", "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb", "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    classes=10, shape=(3, 32, 32), train=50_000, test=10_000, place="cifar-10-batches-py",
)


def cifar10(folder: str | os.PathLike | None = None) -> ImageData:
    """50,000 training and 10,000 test images [3, 32, 32], 256 levels; `folder` None means
    `$FASTFLOW_DATA/cifar-10-batches-py`, the folder that the official archive unpacks to.

    Counts and md5 are checked. Raises FileNotFoundError or ValueError naming the file and the remedy.
    Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    folder = CIFAR10.folder(folder)
    *train, test = (CIFAR10.find(folder, name) for name in CIFAR10.files)
    images, labels = (torch.cat(parts) for parts in zip(*map(read_batch, train), strict=True))
    test_images, test_labels = read_batch(test)
    CIFAR10.require_rows(folder, len(images), "train")
    CIFAR10.require_rows(test, len(test_images), "test")
    for path in (*train, test):
        CIFAR10.verify(path)
    return ImageData(CIFAR10.name, 256, CIFAR10.classes, images, labels, test_images, test_labels)


def read_batch(path: str | os.PathLike) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of one batch: data uint8 [N, 3072] and a list of N labels.

    Raises ValueError naming the file, also for a pickle that asks for anything but a NumPy array.
    """
    with Path(path).open("rb") as file:
        try:
            batch = _Arrays(file, encoding="bytes").load()
            data, labels = batch[b"data"], torch.tensor(batch[b"labels"], dtype=torch.int64)
            images = torch.from_numpy(data).view(-1, *CIFAR10.shape)
        except Exception as error:  # a damaged pickle fails anywhere
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path}: not a complete CIFAR-10 batch ({reason}); get it from {CIFAR10.url}") from error
    if len(images) != len(labels):
        raise ValueError(f"{path}: {len(images)} images and {len(labels)} labels, expected as many; "
                         f"get it from {CIFAR10.url}")
    return images, labels


class _Arrays(pickle.Unpickler):
    """Makes NumPy arrays and the built-in containers, nothing else: a pickle could otherwise run any code."""

    _known = {  # noqa: RUF012
        # as NumPy 1 named what makes an array from a pickle when the batches were written
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._known[module, name]
