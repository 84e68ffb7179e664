"""Tables of features and a class: NumPy archives, CSV and Parquet."""

import csv
import gzip
import os
import warnings
import zlib
from collections.abc import Iterable
from importlib.util import find_spec
from typing import TextIO

import numpy as np
import torch
from torch import Tensor

from fastflow.data.arrays import read_npz
from fastflow.data.labels import check_labels, count_classes
from fastflow.data.vectors import VectorData, check_features

UNREADABLE = (ValueError, EOFError, OSError, csv.Error, zlib.error)  # what a damaged text file, gzipped or not, raises


def tables(train: str | os.PathLike, test: str | os.PathLike, label: str = "label") -> VectorData:
    """Vectors from two files, see `read_table`; classes are counted from the largest label. Features are as stored.

    A training label of -1 means unknown; the others are below the number of rows. Raises FileNotFoundError, TypeError
    or ValueError naming the file at fault.
    """
    (features, labels), (test_features, test_labels) = read_table(train, label), read_table(test, label)
    if test_features.shape[1] != features.shape[1]:
        raise ValueError(f"{test}: {test_features.shape[1]} features, expected {features.shape[1]} as in {train}")
    rows, classes = len(labels) + len(test_labels), count_classes(labels, test_labels)
    for path, part, lowest in ((train, labels, -1), (test, test_labels, 0)):
        check_labels(f"{path}: labels", part, len(part), lowest, min(classes, rows))
    return VectorData(str(train), classes, features, labels, test_features, test_labels)


def read_table(path: str | os.PathLike, label: str = "label") -> tuple[Tensor, Tensor]:
    """Features float32 [N, D] and labels int64 [N] of one file, by the end of its name:

    .npz            arrays `features` or `encodings` [N, D], and `labels` [N]
    .csv, .csv.gz   a line of names, then numbers, UTF-8; the column `label` and D others
    .parquet        numeric columns likewise; needs the extra `parquet`

    Raises FileNotFoundError, TypeError or ValueError naming the file and what in it is at fault.
    """
    readers = {".npz": _read_npz, ".csv": _read_csv, ".csv.gz": _read_csv, ".parquet": _read_parquet}
    for ending, read in readers.items():
        if str(path).endswith(ending):
            features, labels = read(path, label)
            features = torch.from_numpy(np.asarray(features, np.float32))
            labels = torch.from_numpy(_whole(path, labels))
            check_features(f"{path}: features", features)
            check_labels(f"{path}: labels", labels, len(features), -1, count_classes(labels))
            return features, labels
    raise ValueError(f"{path}: expected a name that ends in {', '.join(readers)}")


def open_text(path: str | os.PathLike) -> TextIO:
    """A text file, gzipped if its name ends in .gz; a byte order mark, as spreadsheets write it, is left out."""
    return (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8-sig")


def read_rows(lines: Iterable[str], **options) -> np.ndarray:
    """[N, D], float64 unless `options` of `numpy.loadtxt` say otherwise. Raises ValueError, also for no row, and for
    anything but numbers: there are no comments."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*input contained no data", category=UserWarning)
        try:
            return np.loadtxt(lines, ndmin=2, comments=None, **options)
        except UserWarning:
            raise ValueError("no row of numbers") from None


def _read_npz(path: str | os.PathLike, label: str) -> tuple[np.ndarray, np.ndarray]:
    if label != "label":
        raise ValueError(f"{path}: label is {label!r}, expected none for an .npz file: its array labels has the class")
    arrays = read_npz(path, ("features", "encodings", "labels"))
    features = arrays.get("features", arrays.get("encodings"))
    if features is None or "labels" not in arrays:
        raise ValueError(f"{path}: holds {', '.join(arrays) or 'neither'}, expected the arrays features (or encodings) "
                         "and labels")
    if features.ndim != 2 or not _is_real(features):
        raise TypeError(f"{path}: features are {features.dtype} {features.shape}, expected numbers [N, D]")
    return features, arrays["labels"]


def _read_csv(path: str | os.PathLike, label: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with open_text(path) as file:
            names = [name.strip() for name in next(csv.reader(file), [])]
            rows = read_rows(file, delimiter=",", quotechar='"')
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
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a complete Parquet file ({' '.join(str(error).split())})") from error
    for name, column in zip(table.column_names, columns, strict=True):
        if not _is_real(column):
            raise TypeError(f"{path}: column {name!r} holds {column.dtype}, expected numbers")
    return _apart(path, table.column_names, np.stack(columns, axis=1) if columns else np.empty((0, 0)), label)


def _apart(path: str | os.PathLike, names: list[str], rows: np.ndarray, label: str) -> tuple[np.ndarray, np.ndarray]:
    if names.count(label) != 1:
        raise ValueError(f"{path}: {names.count(label)} of the columns {', '.join(names)} are named {label!r}, "
                         "expected one, which holds the class")
    if any(not name or name.startswith("__index_level_") for name in names):
        raise ValueError(f"{path}: a column of {', '.join(map(repr, names))} is pandas' row index, expected features "
                         "alone; write the table with index=False")
    place = names.index(label)
    return np.delete(rows, place, axis=1), rows[:, place]


def _whole(path: str | os.PathLike, labels: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a number that no integer equals is refused below
        whole = labels.astype(np.int64) if _is_real(labels) else None
    if whole is None or labels.ndim != 1 or not np.array_equal(labels, whole):
        raise TypeError(f"{path}: labels are {labels.dtype} {labels.shape} or not whole, expected whole numbers [N]")
    return whole


def _is_real(array: np.ndarray) -> bool:
    return array.dtype.kind in "iuf"
