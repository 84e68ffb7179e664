"""The batch of a step: which rows, how they move. A function of (seed, step), so that a resumed run draws the same."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastflow.data import ImageData, Split
from fastflow.training.config import Config
from fastflow.training.randomness import DEQUANTIZE, DEQUANTIZE_VIEW, ROWS, VIEW, host_generator, uniform
from fastflow.training.views import NUMBERS, affine_views, normal_numbers


@dataclass(frozen=True)
class Batch:
    """`images` uint8 [B, C, H, W], `labels` int64 [B] (-1 = unlabelled), `noise` in [0, 1) to dequantise them with.

    `views` and `view_noise` are the same of a moved copy of the images, where the loss uses one.
    """

    images: Tensor
    labels: Tensor
    noise: Tensor
    views: Tensor | None = None
    view_noise: Tensor | None = None


class Batches:
    """Batches of a training set with a share of its labels, drawn with replacement.

    A row is labelled with probability w / (w + 1), w = `sampling.labelled` being the labelled rows' total weight.
    """

    def __init__(self, data: ImageData, split: Split, config: Config, seed: int, device: torch.device):
        sampling = config.sampling
        labelled = sampling.labelled if len(split.labelled) else 0.0
        unlabelled = 1.0 if len(split.unlabelled) else 0.0
        if labelled + unlabelled == 0.0:
            raise ValueError("sampling: no row has weight; raise sampling.labelled or lower data.monitor")
        loss = config.loss
        if unlabelled == loss.labelled == loss.classification == loss.view == 0.0:
            raise ValueError("loss.labelled is 0.0, expected more: every row is labelled, and no row has a loss")
        self.share = labelled / (labelled + unlabelled)
        visible = torch.full_like(data.train_labels, -1)
        visible[split.labelled] = data.train_labels[split.labelled]
        self.images, self.labels = data.train_images.to(device), visible.to(device)
        self.split, self.seed, self.device = split, seed, device
        self.size, self.loss, self.levels = sampling.batch, config.loss, data.levels
        self._places = torch.arange(sampling.batch, device=device)

    def rows(self, step: int) -> np.ndarray:
        """int64 [batch] rows of the training set."""
        which, place = host_generator(self.seed, ROWS, step).random((2, self.size))
        labelled, unlabelled = self.split.labelled, self.split.unlabelled
        from_labelled = which < self.share
        rows = np.empty(self.size, dtype=np.int64)
        rows[from_labelled] = labelled[(place[from_labelled] * len(labelled)).astype(np.int64)]
        rows[~from_labelled] = unlabelled[(place[~from_labelled] * len(unlabelled)).astype(np.int64)]
        return rows

    def __call__(self, step: int) -> Batch:
        rows = torch.from_numpy(self.rows(step)).to(self.device, non_blocking=True)
        images, labels = self.images[rows], self.labels[rows]
        key = {"seed": self.seed, "step": step, "rows": self._places}
        noise = uniform(images.shape, stream=DEQUANTIZE, **key)
        if not self.loss.uses_views:
            return Batch(images, labels, noise)
        numbers = normal_numbers(uniform((len(rows), NUMBERS), stream=VIEW, **key))
        views = affine_views(images, numbers, self.loss.views, self.levels)
        return Batch(images, labels, noise, views, uniform(images.shape, stream=DEQUANTIZE_VIEW, **key))
