"""SVHN, the cropped house numbers: MATLAB files of colour images 32x32."""

import os
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from torch import Tensor

from fastflow.data.images import ImageData
from fastflow.data.official import Official

_FILES = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
SVHN = Official("svhn", "http://ufldl.stanford.edu/housenumbers", _FILES, classes=10, shape=(3, 32, 32), train=73_257,
                test=26_032)
SVHN_EXTRA = Official("svhn-extra", SVHN.url, {"extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7"} | _FILES,
                      classes=10, shape=(3, 32, 32), train=604_388, test=26_032, place="svhn")


def svhn(folder: str | os.PathLike | None = None) -> ImageData:
    """73,257 training and 26,032 test images [3, 32, 32], 256 levels; `folder` None means `$FASTFLOW_DATA/svhn`.

    The files' label 10, the digit 0, becomes 0. Counts and md5 are checked. Raises FileNotFoundError or ValueError
    naming the file and the remedy. Source: Netzer et al. 2011, http://ufldl.stanford.edu/housenumbers (format 2).
    """
    return _load(SVHN, folder)


def svhn_extra(folder: str | os.PathLike | None = None) -> ImageData:
    """`svhn` with the 531,131 easier images of extra_32x32.mat after its training images."""
    return _load(SVHN_EXTRA, folder)


def _load(official: Official, folder: str | os.PathLike | None) -> ImageData:
    folder = official.folder(folder)
    paths = {name: official.find(folder, name) for name in official.files}
    parts = {name: read_svhn(path) for name, path in paths.items()}
    trained_on = [name for name in ("train_32x32.mat", "extra_32x32.mat") if name in parts]
    images, labels = (torch.cat(arrays) for arrays in zip(*(parts[name] for name in trained_on), strict=True))
    test_images, test_labels = parts["test_32x32.mat"]
    official.require_rows(paths[trained_on[-1]], len(images), "train")
    official.require_rows(paths["test_32x32.mat"], len(test_images), "test")
    for path in paths.values():
        official.verify(path)
    return ImageData(official.name, 256, official.classes, images, labels, test_images, test_labels)


def read_svhn(path: str | os.PathLike) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] in [0, 10) of one file: X [32, 32, 3, N] and y [N, 1] in 1..10.

    Raises ValueError naming the file.
    """
    try:
        arrays = loadmat(Path(path), variable_names=("X", "y"))
    except Exception as error:  # a damaged file fails anywhere in scipy and zlib
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a complete MATLAB 5 file ({reason}); get it from {SVHN.url}") from error
    for name, dimensions in (("X", 4), ("y", 2)):
        if name not in arrays:
            raise ValueError(f"{path}: no array {name!r}, expected X and y; is it {Path(path).name} of format 2?")
        if arrays[name].dtype != np.uint8 or arrays[name].ndim != dimensions:
            raise ValueError(f"{path}: {name} is {arrays[name].dtype} {arrays[name].shape}, expected uint8 with "
                             f"{dimensions} dimensions")
    images, labels = arrays["X"].transpose(3, 2, 0, 1), arrays["y"][:, 0].astype(np.int64)
    if images.shape[1:] != SVHN.shape or len(labels) != len(images):
        raise ValueError(f"{path}: X is {arrays['X'].shape} and y {arrays['y'].shape}, expected (32, 32, 3, N) "
                         "and (N, 1)")
    if len(labels) and not 1 <= labels.min() <= labels.max() <= 10:
        raise ValueError(f"{path}: labels lie in [{labels.min()}, {labels.max()}], expected [1, 10]: "
                         "10 is the digit 0")
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels % 10)
