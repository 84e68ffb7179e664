"""NumPy archives, and a user's own images from one."""

import os
from pathlib import Path

import numpy as np
import torch

from fastflow.data.images import ImageData
from fastflow.data.labels import count_classes

IMAGES = ("train_images", "test_images")
LABELS = ("train_labels", "test_labels")


def npz(path: str | os.PathLike, levels: int = 256) -> ImageData:
    """Images [N, H, W] or [N, C, H, W] of integer grey levels and labels [N] from the four arrays of an .npz file.

    The arrays are named as the fields of ImageData; a training label of -1 means unknown. Classes are counted from the
    largest label; without both arrays of labels all images are of one class. Raises FileNotFoundError, TypeError or
    ValueError naming the file and the array.
    """
    arrays = read_npz(path, IMAGES + LABELS)
    labelled = any(name in arrays for name in LABELS)
    names = IMAGES + LABELS if labelled else IMAGES
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"{path}: no array {missing[0]!r}, expected {', '.join(names)}")
    if not labelled:
        arrays |= {name: np.zeros(arrays[of].shape[:1], np.int64) for name, of in zip(LABELS, IMAGES, strict=True)}
    count = sum(len(arrays[name]) for name in LABELS if arrays[name].ndim)
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"{path}: {name} has dtype {array.dtype}, expected integers")
        if name in IMAGES and array.size and not 0 <= int(array.min()) <= int(array.max()) < levels <= 256:
            raise ValueError(
                f"{path}: {name} lies in [{array.min()}, {array.max()}] with data.levels = {levels}, "
                "expected values in [0, data.levels) and at most 256 levels"
            )
        if name in LABELS and array.size and int(array.max()) >= max(count, 1):
            raise ValueError(f"{path}: {name} holds label {array.max()}, expected labels below the number of images, "
                             f"{count}")
    images = {name: torch.from_numpy(arrays[name].astype(np.uint8)) for name in IMAGES}
    images = {name: array.unsqueeze(1) if array.dim() == 3 else array for name, array in images.items()}
    labels = {name: torch.from_numpy(arrays[name].astype(np.int64)) for name in LABELS}
    return ImageData(str(path), levels, count_classes(*labels.values()), **images, **labels)


def read_npz(path: str | os.PathLike, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those arrays of an .npz file that `names` lists. Raises FileNotFoundError or ValueError naming the file."""
    try:
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it is a single array")
            found = {name: archive[name] for name in names if name in archive}
    except FileNotFoundError:
        raise
    except Exception as error:  # a folder or a damaged file fails anywhere in numpy, zipfile and zlib
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a complete .npz file ({reason}); write it with numpy.savez") from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{path}: {name} is not an array; write the file with numpy.savez")
    return found
