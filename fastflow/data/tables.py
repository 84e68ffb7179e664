"""Tables of features and a class: NumPy archives, CSV and Parquet."""

import csv
import gzip
import os
import warnings
import zlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastflow.data.arrays import read_npz
from fastflow.data.labels import count_classes
from fastflow.data.vectors import VectorData

UNREADABLE = (ValueError, EOFError, OSError, csv.Error, zlib.error)  # what a damaged text file, gzipped or not, raises


def tables(train: str | os.PathLike, test: str | os.PathLike, label: str = "label") -> VectorData:
    """Vectors from two files, see `read_table`; classes are counted from the largest label. Features are as stored.

    A training label of -1 means unknown. Raises FileNotFoundError, TypeError or ValueError naming the file at fault.
    """
    (features, labels), (test_features, test_labels) = read_table(train, label), read_table(test, label)
    if test_features.shape[1] != features.shape[1]:
        raise ValueError(f"{test}: {test_features.shape[1]} features, expected {features.shape[1]} as in {train}")
    classes = count_classes(labels, test_labels)
    return VectorData(str(train), classes, features, labels, test_features, test_labels)


def read_table(path: str | os.PathLike, label: str = "label") -> tuple[Tensor, Tensor]:
    """Features float32 [N, D] and labels int64 [N] of one file, by the end of its name:

    .npz            arrays `features` or `encodings` [N, D], and `labels` [N]
    .csv, .csv.gz   a line of names, then numbers; the column `label` and D others
    .parquet        numeric columns likewise; needs the extra `parquet`

    Raises FileNotFoundError, TypeError or ValueError naming the file and what in it is at fault.
    """
    readers = {".npz": _read_npz, ".csv": _read_csv, ".csv.gz": _read_csv, ".parquet": _read_parquet}
    for ending, read in readers.items():
        if str(path).endswith(ending):
            features, labels = read(path, label)
            return torch.from_numpy(np.array(features, np.float32)), torch.from_numpy(_whole(path, labels))
    raise ValueError(f"{path}: expected a name that ends in {', '.join(readers)}")


def read_rows(lines: Iterable[str], **options) -> np.ndarray:
    """float64 [N, D] by `numpy.loadtxt` with `options`. Raises ValueError, also where there is no row."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*input contained no data", category=UserWarning)
        try:
            return np.loadtxt(lines, ndmin=2, **options)
        except UserWarning:
            raise ValueError("no row of numbers") from None


def _read_npz(path: str | os.PathLike, label: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = read_npz(path, ("features", "encodings", "labels"))
    features = arrays.get("features", arrays.get("encodings"))
    if features is None or "labels" not in arrays:
        raise ValueError(f"{path}: holds {', '.join(arrays) or 'neither'}, expected the arrays features (or encodings) "
                         "and labels")
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.number):
        raise TypeError(f"{path}: features are {features.dtype} {features.shape}, expected numbers [N, D]")
    return features, arrays["labels"]


def _read_csv(path: str | os.PathLike, label: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with gzip.open(path, "rt") if str(path).endswith(".gz") else Path(path).open() as file:
            names = [name.strip() for name in next(csv.reader(file), [])]
            rows = read_rows(file, delimiter=",")
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a table of numbers ({error})") from error
    if rows.shape[1] != len(names):
        raise ValueError(f"{path}: {rows.shape[1]} columns under {len(names)} names, expected as many")
    return _apart(path, names, rows, label)


def _read_parquet(path: str | os.PathLike, label: str) -> tuple[np.ndarray, np.ndarray]:
    if find_spec("pyarrow") is None:
        raise ValueError(f"{path}: Parquet needs pyarrow, which is missing; pip install 'fastflow[parquet]'")
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        columns = [column.to_numpy() for column in table.columns]
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a complete Parquet file ({' '.join(str(error).split())})") from error
    for name, column in zip(table.column_names, columns, strict=True):
        if not np.issubdtype(column.dtype, np.number):
            raise TypeError(f"{path}: column {name!r} holds {column.dtype}, expected numbers")
    return _apart(path, table.column_names, np.stack(columns, axis=1), label)


def _apart(path: str | os.PathLike, names: list[str], rows: np.ndarray, label: str) -> tuple[np.ndarray, np.ndarray]:
    if label not in names:
        raise ValueError(f"{path}: no column {label!r}, expected one of {', '.join(names)} to hold the class")
    place = names.index(label)
    return np.delete(rows, place, axis=1), rows[:, place]


def _whole(path: str | os.PathLike, labels: np.ndarray) -> np.ndarray:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.number) or not np.array_equal(labels, np.rint(labels)):
        raise TypeError(f"{path}: labels are {labels.dtype} {labels.shape} or not whole, expected whole numbers [N]")
    return labels.astype(np.int64)
