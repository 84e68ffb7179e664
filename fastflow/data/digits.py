"""The 8x8 handwritten digits that scikit-learn carries: 1797 images, 17 grey levels, no download."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastflow.data.images import ImageData

TEST_IMAGES = 500


def digits() -> ImageData:
    """1297 training and 500 test images [1, 8, 8], levels 0..16; one fixed stratified split, whatever the seed.

    Source: UCI optical recognition of handwritten digits (Alpaydin, Kaynak 1998) as `sklearn.datasets.load_digits`.
    """
    pixels, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, random_state=0, stratify=labels)
    images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(labels.astype(np.int64))
    return ImageData("digits", 17, 10, images[train], labels[train], images[test], labels[test])
