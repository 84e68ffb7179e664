"""The batch of a step: which rows, how they move. A function of (seed, step), so that a resumed run draws the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastflow.data import Augmentation, Split, augment
from fastflow.data.augment import NUMBERS as AUGMENT_NUMBERS
from fastflow.training.build import Data
from fastflow.training.config import Config
from fastflow.training.randomness import (
    AUGMENT,
    DEQUANTIZE,
    DEQUANTIZE_OTHER,
    DEQUANTIZE_VIEW,
    OTHER,
    ROWS,
    VIEW,
    host_generator,
    uniform,
)
from fastflow.training.views import NUMBERS, affine_views, noisy_views, normal_numbers


@dataclass(frozen=True)
class Batch:
    """`x` [B, *shape] as the data store it, `labels` int64 [B] (-1 = unlabelled), `rows` int64 [B] of the training set.

    `noise` of x's shape in [0, 1) dequantises grey levels; None for continuous data. `views` and `view_noise` are the
    same of a moved copy that shares only its class with x, `other` and `other_noise` of a second augmentation, where
    the loss uses one. `groups` int64 [B] where the data have groups.
    """

    source: Batches
    step: int
    rows: Tensor
    x: Tensor
    labels: Tensor
    noise: Tensor | None
    views: Tensor | None = None
    view_noise: Tensor | None = None
    other: Tensor | None = None
    other_noise: Tensor | None = None
    groups: Tensor | None = None

    def uniform(self, shape: tuple[int, ...], stream: int) -> Tensor:
        """Noise in [0, 1) that (seed, step, place in the batch) determine."""
        return self.source.uniform(shape, stream, self.step)


class Batches:
    """Batches of a training set with a share of its labels, drawn with replacement.

    A row is labelled with probability w / (w + 1), w = `sampling.labelled` being the labelled rows' total weight.
    EM's M-steps on one batch are given the same one again.
    """

    def __init__(self, data: Data, split: Split, config: Config, seed: int, device: torch.device):
        sampling, self.loss, moves = config.sampling, config.loss, config.augmentation.moves
        self.augmentation = Augmentation(**config.augmentation.model_dump()) if moves else None
        labelled = sampling.labelled if len(split.labelled) else 0.0
        unlabelled = 1.0 if len(split.unlabelled) else 0.0
        if labelled + unlabelled == 0.0:
            raise ValueError("sampling: no row has weight; raise sampling.labelled or lower data.monitor")
        loss = config.loss
        if unlabelled == loss.labelled == loss.classification == loss.view == loss.consistency == 0.0:
            raise ValueError("loss.labelled is 0.0, expected more: every row is labelled, and no row has a loss")
        if data.levels == 1 and (loss.consistency or moves):
            raise ValueError(f"loss.consistency and augmentation move images, but {data.name} has vectors; leave them "
                             "out, or use loss.view and loss.pseudo")
        self.share = labelled / (labelled + unlabelled)
        visible = torch.full_like(data.train_labels, -1)
        visible[split.labelled] = data.train_labels[split.labelled]
        self.x, self.labels = data.train_x.to(device), visible.to(device)
        self.groups = None if data.train_groups is None else data.train_groups.to(device)
        self.split, self.seed, self.device = split, seed, device
        self.size, self.levels = sampling.batch, data.levels
        self.repeats = loss.em_steps if loss.em_refresh == "batch" else 1
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

    def uniform(self, shape: tuple[int, ...], stream: int, step: int) -> Tensor:
        return uniform(shape, seed=self.seed, stream=stream, step=step, rows=self._places)

    def __call__(self, step: int) -> Batch:
        step -= step % self.repeats
        rows = torch.from_numpy(self.rows(step)).to(self.device, non_blocking=True)
        stored, labels = self.x[rows], self.labels[rows]
        batch = {"source": self, "step": step, "rows": rows, "labels": labels}
        if self.groups is not None:
            batch["groups"] = self.groups[rows]
        if self.levels == 1:
            if self.loss.uses_views:
                batch["views"] = noisy_views(stored, self.uniform(stored.shape, VIEW, step), self.loss.views)
            return Batch(x=stored, noise=None, **batch)
        x = self._augmented(stored, AUGMENT, step)
        batch |= {"x": x, "noise": self.uniform(x.shape, DEQUANTIZE, step)}
        if self.loss.uses_views:
            numbers = normal_numbers(self.uniform((len(rows), NUMBERS), VIEW, step))
            batch["views"] = affine_views(x, numbers, self.loss.views, self.levels)
            batch["view_noise"] = self.uniform(x.shape, DEQUANTIZE_VIEW, step)
        if self.loss.consistency:
            batch["other"] = self._augmented(stored, OTHER, step)
            batch["other_noise"] = self.uniform(x.shape, DEQUANTIZE_OTHER, step)
        return Batch(**batch)

    def _augmented(self, images: Tensor, stream: int, step: int) -> Tensor:
        if self.augmentation is None:
            return images
        numbers = self.uniform((len(images), AUGMENT_NUMBERS), stream, step)
        return augment(images, numbers, self.augmentation)
