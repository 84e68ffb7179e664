"""Which training rows show their label, and which are set aside to watch progress."""

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import train_test_split


@dataclass(frozen=True)
class Split:
    """Rows of the training set, int64 arrays: `labelled`, `unlabelled`, and the `monitor` rows, whose labels are
    only ever compared with predictions. Labelled and monitored rows are disjoint."""

    labelled: np.ndarray
    unlabelled: np.ndarray
    monitor: np.ndarray


def split_rows(
    labels: np.ndarray, classes: int, labelled: int, seed: int, monitor: int = 0, hold_out: bool = True
) -> Split:
    """Chooses `labelled` rows stratified by class, at least one a class, and `monitor` others, by `seed` alone.

    `labels` int64 [N], -1 = unknown (such rows stay unlabelled). `hold_out` False trains on the monitored images too,
    without their labels. Raises ValueError, naming the setting, where the counts do not fit.
    """
    known = np.flatnonzero(labels >= 0)
    counts = np.bincount(labels[known], minlength=classes)
    if 0 < labelled < classes:
        raise ValueError(f"data.labels is {labelled}, expected 0 or at least {classes}: one labelled image a class")
    if labelled + monitor > len(known):
        raise ValueError(
            f"data.labels + data.monitor is {labelled} + {monitor}, "
            f"expected at most {len(known)}: the training images with a known label"
        )
    if labelled and counts.min() == 0:
        raise ValueError(f"data: class {int(counts.argmin())} has no image in the training set")
    chosen, rest = _stratified(known, labels, labelled, seed)
    chosen, rest = _cover(chosen, rest, labels, classes if labelled else 0)
    watched, rest = _stratified(rest, labels, monitor, seed)
    unknown = np.flatnonzero(labels < 0)
    unlabelled = np.concatenate([rest, unknown] if hold_out else [rest, watched, unknown])
    return Split(chosen, unlabelled, watched)


def _stratified(rows: np.ndarray, labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if count == 0:
        return rows[:0], rows
    if count == len(rows):
        return rows, rows[:0]
    kinds, sizes = np.unique(labels[rows], return_counts=True)
    possible = sizes.min() >= 2 and min(count, len(rows) - count) >= len(kinds)
    chosen, rest = train_test_split(
        rows, train_size=count, random_state=seed, stratify=labels[rows] if possible else None
    )
    return chosen, rest


def _cover(chosen: np.ndarray, rest: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Stratifying rounds a rare class down to nothing: it then takes the place of a row of the most frequent one."""
    chosen, rest = chosen.copy(), rest.copy()
    for kind in range(classes):
        if kind not in labels[chosen]:
            give = np.flatnonzero(labels[chosen] == np.bincount(labels[chosen]).argmax())[-1]
            take = np.flatnonzero(labels[rest] == kind)[0]
            chosen[give], rest[take] = rest[take], chosen[give]
    return chosen, rest
