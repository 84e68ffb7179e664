"""The batch of a step: which rows, how they move. A function of (seed, step), so that a resumed run draws the same."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastflow.data import ImageData, Split
from fastflow.training.config import SamplingConfig
from fastflow.training.randomness import AUGMENT, DEQUANTIZE, ROWS, host_generator, uniform


@dataclass(frozen=True)
class Batch:
    """`images` uint8 [B, C, H, W], `labels` int64 [B] (-1 = unlabelled), `noise` in [0, 1) to dequantise them with."""

    images: Tensor
    labels: Tensor
    noise: Tensor


class Batches:
    """Batches of a training set with a share of its labels, drawn with replacement.

    A row is labelled with probability w / (w + 1), w = `config.labelled` being the labelled rows' total weight.
    """

    def __init__(self, data: ImageData, split: Split, config: SamplingConfig, seed: int, device: torch.device):
        labelled = config.labelled if len(split.labelled) else 0.0
        unlabelled = 1.0 if len(split.unlabelled) else 0.0
        if labelled + unlabelled == 0.0:
            raise ValueError("sampling: no row has weight; raise sampling.labelled or lower data.monitor")
        self.share = labelled / (labelled + unlabelled)
        visible = torch.full_like(data.train_labels, -1)
        visible[split.labelled] = data.train_labels[split.labelled]
        self.images, self.labels = data.train_images.to(device), visible.to(device)
        self.split, self.config, self.seed, self.device = split, config, seed, device
        self._places = torch.arange(config.batch, device=device)

    def rows(self, step: int) -> np.ndarray:
        """int64 [batch] rows of the training set."""
        which, place = host_generator(self.seed, ROWS, step).random((2, self.config.batch))
        labelled, unlabelled = self.split.labelled, self.split.unlabelled
        from_labelled = which < self.share
        rows = np.empty(self.config.batch, dtype=np.int64)
        rows[from_labelled] = labelled[(place[from_labelled] * len(labelled)).astype(np.int64)]
        rows[~from_labelled] = unlabelled[(place[~from_labelled] * len(unlabelled)).astype(np.int64)]
        return rows

    def __call__(self, step: int) -> Batch:
        rows = torch.from_numpy(self.rows(step)).to(self.device, non_blocking=True)
        images, labels = self.images[rows], self.labels[rows]
        key = {"seed": self.seed, "step": step, "rows": self._places}
        if reach := self.config.shift:
            moves = uniform((len(rows), 2), stream=AUGMENT, **key)
            images = shift_images(images, (moves * (2 * reach + 1)).long() - reach)
        return Batch(images, labels, uniform(images.shape, stream=DEQUANTIZE, **key))


def shift_images(images: Tensor, moves: Tensor) -> Tensor:
    """Moves image b of [B, C, H, W] by moves[b, 0] rows down and moves[b, 1] columns right; level 0 comes in."""
    rows, _, height, width = images.shape
    y = torch.arange(height, device=images.device) - moves[:, :1]
    x = torch.arange(width, device=images.device) - moves[:, 1:]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    batch = torch.arange(rows, device=images.device)[:, None, None]
    moved = images[batch, :, y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]]
    return (moved * inside[..., None]).permute(0, 3, 1, 2).contiguous()
