"""A split as a file, so that another run, or another program, uses the same rows."""

import os
from pathlib import Path

import numpy as np

from fastflow.data.arrays import read_npz
from fastflow.data.images import ImageData
from fastflow.data.labels import sha256
from fastflow.data.split import Split
from fastflow.data.vectors import VectorData

_ROWS = ("labelled", "unlabelled", "monitor")
_IDENTITY = ("name", "label_counts", "labels_sha256")


def write_split(path: str | os.PathLike, split: Split, data: ImageData | VectorData) -> None:
    """Writes the rows of a split, in their order, to an .npz file, with what identifies its data set: the name (of a
    user's own file without its folders) and the training labels.

    Raises ValueError for a name that does not end in .npz, FileExistsError rather than overwrite a file.
    """
    if not str(path).endswith(".npz"):
        raise ValueError(f"{path}: expected a name that ends in .npz")
    rows = {name: getattr(split, name).astype(np.int64) for name in _ROWS}
    with Path(path).open("xb") as file:
        np.savez_compressed(file, **rows, **_identity(data))


def read_split(path: str | os.PathLike, data: ImageData | VectorData) -> Split:
    """The split that `write_split` wrote: the same rows in the same order.

    Raises FileNotFoundError, or ValueError if it was made of a set with another name or other training labels, or the
    same in another order, or if its rows are not rows of the set, each once.
    """
    arrays = read_npz(path, _ROWS + _IDENTITY)
    missing = [name for name in _ROWS + _IDENTITY if name not in arrays]
    if missing:
        raise ValueError(f"{path}: no array {missing[0]!r}, expected a file of write_split")
    identity = _identity(data)
    name, counts, expected = str(arrays["name"]), arrays["label_counts"], identity["label_counts"]
    if name != identity["name"]:
        raise ValueError(f"{path}: is a split of {name}, expected one of {identity['name']}")
    if counts.sum() != expected.sum():
        raise ValueError(f"{path}: is a split of {counts.sum()} training rows, expected {expected.sum()} as {name} has")
    if not np.array_equal(counts, expected):
        raise ValueError(f"{path}: is a split of rows with {counts[1:].tolist()} labels of each class, "
                         f"expected {expected[1:].tolist()} as {name} has")
    if str(arrays["labels_sha256"]) != identity["labels_sha256"]:
        raise ValueError(f"{path}: is a split of {name} with its training rows in another order, expected that of now")
    _check_rows(path, arrays, data.train_labels.numpy())
    return Split(*(arrays[name] for name in _ROWS))


def _identity(data: ImageData | VectorData) -> dict[str, str | np.ndarray]:
    """By the names in `_IDENTITY`; the counts are of training rows of unknown class, then of each class."""
    counts = np.bincount(data.train_labels.numpy() + 1, minlength=data.classes + 1)
    return {"name": Path(data.name).name, "label_counts": counts, "labels_sha256": sha256(data.train_labels)}


def _check_rows(path: str | os.PathLike, arrays: dict[str, np.ndarray], labels: np.ndarray) -> None:
    for name in _ROWS:
        rows = arrays[name]
        valid = rows.dtype == np.int64 and rows.ndim == 1 and len(np.unique(rows)) == len(rows)
        if not valid or (len(rows) and not 0 <= rows.min() <= rows.max() < len(labels)):
            raise ValueError(f"{path}: {name} are not int64 rows of {len(labels)}, each once")
        if name != "unlabelled" and (labels[rows] < 0).any():
            raise ValueError(f"{path}: {name} has a row without a known label")
    for name in ("unlabelled", "monitor"):
        if np.isin(arrays[name], arrays["labelled"]).any():
            raise ValueError(f"{path}: labelled and {name} share a row, expected none")
