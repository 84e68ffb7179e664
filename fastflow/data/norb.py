"""Small NORB: stereo pairs of grey images of toys, in LeCun's binary matrix format."""

import math
import os

import numpy as np
import torch

from fastflow.data.images import ImageData
from fastflow.data.official import Official, read_unpacked

_TYPES = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}  # magic number: what follows the header
_FILES = {part: f"smallnorb-5x{toys}x9x18x6x2x96x96-{part}ing-{{}}.mat.gz"
          for part, toys in (("train", "46789"), ("test", "01235"))}
SMALL_NORB = Official(
    "small-norb", "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small",
    {
        _FILES["train"].format("dat"): "5ffd6272a07d32695ee1082a26a41a93a37aab8c28da047f8c34ed348d214873",
        _FILES["train"].format("cat"): "2784e542c1922060691090952b6cd6278879a216c90f81476f0f00256d42cdaa",
        _FILES["test"].format("dat"): "cf7104eed3e51174d2f65b66d1e5878b9da233b886f161b0d88f4510ba2c7474",
        _FILES["test"].format("cat"): "ecaf6d5bb8c3bc5eab9cf0258f6d2198dd474e016e374836fc097f2e5ff509ff",
    },
    classes=5, shape=(2, 96, 96), train=24_300, test=24_300,
)


def small_norb(folder: str | os.PathLike | None = None) -> ImageData:
    """24,300 training and 24,300 test pairs of images [2, 96, 96], 256 levels, of other toys of the same 5 classes:
    animal, human, plane, truck, car. `folder` None means `$FASTFLOW_DATA/small-norb`.

    Counts are checked, and the sha256 of the gzipped files as recorded by TensorFlow Datasets. Raises
    FileNotFoundError or ValueError naming the file and the remedy. Source: LeCun, Huang, Bottou 2004,
    https://cs.nyu.edu/~ylclab/data/norb-v1.0-small.
    """
    folder, arrays = SMALL_NORB.folder(folder), {}
    for part, name in _FILES.items():
        images, labels = (SMALL_NORB.find(folder, name.format(kind)) for kind in ("dat", "cat"))
        arrays[f"{part}_images"] = torch.from_numpy(read_norb(images, np.dtype("u1"), dimensions=4))
        arrays[f"{part}_labels"] = torch.from_numpy(read_norb(labels, np.dtype("<i4"), dimensions=1).astype(np.int64))
        SMALL_NORB.require_shape(images, tuple(arrays[f"{part}_images"].shape[1:]))
        for path, kind in ((images, "images"), (labels, "labels")):
            SMALL_NORB.require_rows(path, len(arrays[f"{part}_{kind}"]), part)
            SMALL_NORB.verify(path)
    return ImageData(SMALL_NORB.name, 256, SMALL_NORB.classes, **arrays)


def read_norb(path: str | os.PathLike, dtype: np.dtype, dimensions: int) -> np.ndarray:
    """The array of a binary matrix file (gzipped if it ends in .gz): magic number, number of dimensions, sizes, data,
    all little-endian. At least three sizes are written; those past the number of dimensions mean nothing.

    Raises ValueError, naming the file, for another type, another number of dimensions, or a size that differs from the
    header's.
    """
    content = read_unpacked(path, f"get it from {SMALL_NORB.url}")
    start = 8 + 4 * max(3, dimensions)
    if len(content) < start:
        raise ValueError(f"{path}: {len(content)} bytes, expected a header of {start}; get it from {SMALL_NORB.url}")
    magic, found, *sizes = np.frombuffer(content, "<u4", start // 4).tolist()
    if _TYPES.get(magic) != dtype or found != dimensions:
        raise ValueError(f"{path}: magic number {magic:#010x} and {found} dimensions, expected {dimensions} dimensions "
                         f"of type {dtype}; is it the right file?")
    shape = tuple(sizes[:dimensions])
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        raise ValueError(f"{path}: {len(content) - start} bytes of data, expected {expected} for {shape}; "
                         f"get it from {SMALL_NORB.url}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).copy()
