"""MNIST and its kin: the four IDX files, gzipped or not."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from fastflow.data.images import ImageData

_MAGIC_UNSIGNED_BYTES = 0x0800  # the low byte of the magic number is the number of dimensions
_REMEDY = "download the four MNIST files again"


def mnist(folder: str | os.PathLike | None = None) -> ImageData:
    """60,000 training and 10,000 test images [1, 28, 28], 256 levels, from the IDX files in `folder`.

    `folder` None means `$FASTFLOW_DATA/mnist`. Raises FileNotFoundError or ValueError naming the file and the remedy.
    Source: LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist.
    """
    if folder is None:
        root = os.environ.get("FASTFLOW_DATA")
        if not root:
            raise FileNotFoundError(
                "mnist: no folder given; set data.path to the folder of the four IDX files, "
                "or FASTFLOW_DATA to a folder with mnist/ inside"
            )
        folder = Path(root) / "mnist"
    arrays = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(_find(Path(folder), f"{prefix}-images-idx3-ubyte"), dimensions=3)
        labels = read_idx(_find(Path(folder), f"{prefix}-labels-idx1-ubyte"), dimensions=1)
        arrays[f"{part}_images"] = torch.from_numpy(images).unsqueeze(1)
        arrays[f"{part}_labels"] = torch.from_numpy(labels.astype(np.int64))
    return ImageData("mnist", 256, 10, **arrays)


def read_idx(path: str | os.PathLike, dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file (gzipped if it ends in .gz) with that many dimensions.

    Raises ValueError, naming the file, for a bad magic number, a size that differs from the header's, or a broken gzip.
    """
    try:
        content = gzip.decompress(Path(path).read_bytes()) if str(path).endswith(".gz") else Path(path).read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a complete gzip file ({error}); {_REMEDY}") from error
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


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{folder / name}.gz: no such file; set data.path to the folder of the four MNIST IDX files"
    )
