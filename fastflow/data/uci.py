"""HEPMASS and MINIBOONE of the UCI repository, prepared as FlowGMM does (flow_ssl/data of its public code)."""

import os

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from fastflow.data.official import Official
from fastflow.data.tables import UNREADABLE, open_text, read_rows
from fastflow.data.vectors import VectorData, standardize

_HEPMASS_FEATURES = 27
_HEPMASS_SHARES = {"train": 0.2, "test": 0.04}
_REPEATS = 5  # a column whose smallest value comes more often is discrete and has no density
HEPMASS = Official("hepmass", "https://archive.ics.uci.edu/dataset/347/hepmass",
                   dict.fromkeys(("1000_train.csv.gz", "1000_test.csv.gz")), classes=2, shape=None, train=None,
                   test=None)
MINIBOONE_ROWS = {"signal": 36_499, "background": 93_565}
MINIBOONE = Official("miniboone", "https://archive.ics.uci.edu/dataset/199/miniboone+particle+identification",
                     {"MiniBooNE_PID.txt": None}, classes=2, shape=(50,), train=65_698, test=7_300)


def hepmass(folder: str | os.PathLike | None = None) -> VectorData:
    """Collisions that do (1) or do not (0) make a particle of mass 1000, standardised: float32 [N, D], D at most 27.

    20 % of 1000_train.csv and 4 % of 1000_test.csv, drawn once and for all without replacement; without the columns
    whose smallest value comes more than 5 times in the training part. `folder` None means `$FASTFLOW_DATA/hepmass`. No
    checksum is published; columns and labels are checked. Raises FileNotFoundError or ValueError naming the file.
    Source: Baldi et al. 2016, https://archive.ics.uci.edu/dataset/347/hepmass.
    """
    folder, random, arrays = HEPMASS.folder(folder), np.random.default_rng(0), {}
    for part, share in _HEPMASS_SHARES.items():
        rows = read_hepmass(HEPMASS.find(folder, f"1000_{part}.csv.gz"))
        rows = rows[random.choice(len(rows), max(round(share * len(rows)), 1), replace=False)]
        arrays[part] = rows[:, 1:], torch.from_numpy(rows[:, 0].astype(np.int64))
    train = arrays["train"][0]
    kept = np.flatnonzero((train == train.min(axis=0)).sum(axis=0) <= _REPEATS)
    if not len(kept):
        raise ValueError(f"{folder}: the smallest value of every column comes more than {_REPEATS} times, "
                         "expected continuous features")
    parts = {name: torch.from_numpy(features[:, kept]) for name, (features, _) in arrays.items()}
    return standardize(VectorData(HEPMASS.name, HEPMASS.classes, parts["train"], arrays["train"][1], parts["test"],
                                  arrays["test"][1]))


def miniboone(folder: str | os.PathLike | None = None) -> VectorData:
    """Electron (1) and muon (0) neutrino events, as many of each, standardised: float32 [65698, 50] and [7300, 50].

    The first 36,499 of each class, 90 % of them the training set, one fixed stratified split. FlowGMM standardises by
    all of them, here the training set alone counts. `folder` None means `$FASTFLOW_DATA/miniboone`. No checksum is
    published; counts are checked. Raises FileNotFoundError or ValueError naming the file.
    Source: Roe et al. 2005, https://archive.ics.uci.edu/dataset/199/miniboone+particle+identification.
    """
    folder = MINIBOONE.folder(folder)
    path = MINIBOONE.find(folder, "MiniBooNE_PID.txt")
    signal, background = read_miniboone(path)
    for kind, rows in (("signal", signal), ("background", background)):
        if len(rows) != MINIBOONE_ROWS[kind]:
            raise ValueError(f"{path}: {len(rows)} rows of {kind}, expected {MINIBOONE_ROWS[kind]}; "
                             f"get it from {MINIBOONE.url}")
    count = min(len(signal), len(background))
    features, labels = np.concatenate([signal[:count], background[:count]]), np.repeat([1, 0], count)
    train, test = train_test_split(np.arange(2 * count), test_size=0.1, random_state=0, stratify=labels)
    features, labels = torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)
    return standardize(VectorData(MINIBOONE.name, MINIBOONE.classes, features[train], labels[train], features[test],
                                  labels[test]))


def read_hepmass(path: str | os.PathLike) -> np.ndarray:
    """float32 [N, 28] of one file: the label 0 or 1, then 27 features; what follows them (1000_test.csv) is left out.

    Raises ValueError naming the file.
    """
    columns = 1 + _HEPMASS_FEATURES
    try:
        with open_text(path) as file:
            header = file.readline()
            rows = read_rows(file, delimiter=",", usecols=range(columns), dtype=np.float32)  # of 7 000 000
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a table of {columns} columns ({error}); get it from {HEPMASS.url}") from error
    if "label" not in header.partition(",")[0] or not np.isin(rows[:, 0], (0, 1)).all():
        raise ValueError(f"{path}: begins with {header[:40].strip()!r}, expected a line of names, first label, and "
                         f"rows that begin with 0 or 1; get it from {HEPMASS.url}")
    return rows


def read_miniboone(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Signal and background, float64 [N, 50]: a line with both numbers of rows, then the rows in this order.

    Raises ValueError naming the file.
    """
    try:
        with open_text(path) as file:
            signal, background = map(int, file.readline().split())
            rows = read_rows(file)
    except UNREADABLE as error:
        raise ValueError(f"{path}: not two counts and a table of numbers ({error}); "
                         f"get it from {MINIBOONE.url}") from error
    if rows.shape != (signal + background, *MINIBOONE.shape):
        raise ValueError(f"{path}: the table is {rows.shape}, expected {(signal + background, *MINIBOONE.shape)}; "
                         f"get it from {MINIBOONE.url}")
    return rows[:signal], rows[signal:]
