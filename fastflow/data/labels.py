"""What images and vectors have in common: labels in range, and a digest that identifies the arrays."""

import hashlib

from torch import Tensor, int64


def check_labels(name: str, labels: Tensor, rows: int, lowest: int, classes: int) -> None:
    """Raises TypeError or ValueError unless `labels` is int64 [rows] in [lowest, classes)."""
    if labels.dtype != int64:
        raise TypeError(f"{name} has dtype {labels.dtype}, expected torch.int64")
    if tuple(labels.shape) != (rows,):
        raise ValueError(f"{name} has shape {tuple(labels.shape)}, expected ({rows},): one label a row")
    if int(labels.min()) < lowest or int(labels.max()) >= classes:
        present = f"[{int(labels.min())}, {int(labels.max())}]"
        raise ValueError(f"{name} lies in {present}, expected [{lowest}, {classes - 1}]")


def sha256(*arrays: Tensor) -> str:
    """Hex digest over the bytes of `arrays`, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.contiguous().numpy())
    return digest.hexdigest()


def count_classes(*labels: Tensor) -> int:
    """One more than the largest label, at least 1."""
    return 1 + max([0, *(int(part.max()) for part in labels if part.numel())])
