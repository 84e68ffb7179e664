"""MNIST and its kin: the four IDX files, gzipped or not."""

import math
import os
from pathlib import Path

import numpy as np
import torch

from fastflow.data.images import ImageData
from fastflow.data.labels import count_classes
from fastflow.data.official import Official, read_unpacked

_MAGIC_UNSIGNED_BYTES = 0x0800  # the low byte of the magic number is the number of dimensions
_REMEDY = "get the file again"
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _official(name: str, url: str, *digests: str, of_content: bool = False) -> Official:
    files = {f"{file}.gz": digest for file, digest in zip(_FILES, digests, strict=True)}
    return Official(name, url, files, classes=10, shape=(1, 28, 28), train=60_000, test=10_000, of_content=of_content)


MNIST = _official(
    "mnist", "https://ossci-datasets.s3.amazonaws.com/mnist",
    "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
    "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637", of_content=True,
)
FASHION_MNIST = _official(
    "fashion-mnist", "https://github.com/zalandoresearch/fashion-mnist",
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
    "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
)
KMNIST = _official(
    "kmnist", "https://github.com/rois-codh/kmnist",
    "bdb82020997e1d708af4cf47b453dcf7", "e144d726b3acfaa3e44228e80efcd344",
    "5c965bf0a639b31b8f53240b1b52f4d7", "7320c461ea6c1c855c0b718fb2a4b134",
)


def mnist(folder: str | os.PathLike | None = None) -> ImageData:
    """60,000 training and 10,000 test images [1, 28, 28], 256 levels; `folder` None means `$FASTFLOW_DATA/mnist`.

    The md5 of the unpacked files is checked. Raises FileNotFoundError or ValueError naming the file and the remedy.
    Source: LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist.
    """
    return _load(MNIST, MNIST.folder(folder))


def fashion_mnist(folder: str | os.PathLike | None = None) -> ImageData:
    """Clothes in the format and numbers of MNIST; `folder` None means `$FASTFLOW_DATA/fashion-mnist`.

    The md5 of the gzipped files is checked; of unpacked ones the counts. Raises as `mnist`.
    Source: Xiao, Rasul, Vollgraf 2017, https://github.com/zalandoresearch/fashion-mnist.
    """
    return _load(FASHION_MNIST, FASHION_MNIST.folder(folder))


def kmnist(folder: str | os.PathLike | None = None) -> ImageData:
    """Cursive hiragana in the format and numbers of MNIST; `folder` None means `$FASTFLOW_DATA/kmnist`.

    The md5 of the gzipped files is checked; of unpacked ones the counts. Raises as `mnist`.
    Source: Clanuwat et al. 2018, https://github.com/rois-codh/kmnist.
    """
    return _load(KMNIST, KMNIST.folder(folder))


def idx(folder: str | os.PathLike) -> ImageData:
    """Any set of four IDX files with MNIST's file names: images [N, H, W] and labels [N], 256 levels.

    Classes are counted from the largest label. Raises as `mnist`.
    """
    files = dict.fromkeys(f"{name}.gz" for name in _FILES)
    return _load(Official(str(folder), "its publisher", files, 0, shape=None, train=None, test=None), Path(folder))


def _load(official: Official, folder: Path) -> ImageData:
    paths = {name: official.find(folder, f"{name}.gz") for name in _FILES}
    arrays = {name: read_idx(path, dimensions=3 if "images" in name else 1) for name, path in paths.items()}
    for name, path in paths.items():
        official.require_rows(path, len(arrays[name]), "train" if name.startswith("train") else "test")
        official.verify(path)
    train_images, test_images = (torch.from_numpy(arrays[name]).unsqueeze(1) for name in _FILES[::2])
    train_labels, test_labels = (torch.from_numpy(arrays[name].astype(np.int64)) for name in _FILES[1::2])
    official.require_shape(paths[_FILES[0]], tuple(train_images.shape[1:]))
    classes = official.classes or count_classes(train_labels, test_labels)
    return ImageData(official.name, 256, classes, train_images, train_labels, test_images, test_labels)


def read_idx(path: str | os.PathLike, dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file (gzipped if it ends in .gz) with that many dimensions.

    Raises ValueError, naming the file, for a bad magic number, a size that differs from the header's, or a broken gzip.
    """
    content = read_unpacked(path, _REMEDY)
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(f"{path}: {len(content)} bytes, expected a header of {header}; {_REMEDY}")
    magic = int.from_bytes(content[:4], "big")
    if magic != _MAGIC_UNSIGNED_BYTES + dimensions:
        expected = _MAGIC_UNSIGNED_BYTES + dimensions
        raise ValueError(f"{path}: magic number {magic:#010x}, expected {expected:#010x}; is it the right file?")
    shape = tuple(int(size) for size in np.frombuffer(content, dtype=">u4", count=dimensions, offset=4))
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path}: {len(content) - header} bytes of data, expected {math.prod(shape)} for {shape}; {_REMEDY}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()
