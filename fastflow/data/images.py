"""What every data set is once loaded: grey levels and labels as tensors, checked once."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastflow.data.labels import check_labels, sha256


@dataclass(frozen=True)
class ImageData:
    """A training and a test set of images in grey levels.

    `train_images`, `test_images` uint8 [N, C, H, W] with values in [0, levels); `train_labels`, `test_labels` int64 [N]
    with values in [0, classes), -1 = unknown (training only). A set joined of others has their names, `groups`, and of
    every row which it is from, `train_groups`, `test_groups` int64 [N]; -1 then also is the label of a row of a group
    without classes, in both parts. Raises TypeError or ValueError naming the array at fault.
    """

    name: str
    levels: int
    classes: int
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    groups: tuple[str, ...] = ()
    train_groups: Tensor | None = None
    test_groups: Tensor | None = None

    def __post_init__(self):
        for part, lowest in (("train", -1), ("test", -1 if self.groups else 0)):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            _check_images(f"{self.name}: {part}_images", images, self.levels)
            check_labels(f"{self.name}: {part}_labels", labels, len(images), lowest, self.classes)
            self._check_groups(f"{part}_groups", len(images))
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"{self.name}: test_images have shape {tuple(self.test_images.shape[1:])}, "
                f"expected {tuple(self.train_images.shape[1:])} as train_images"
            )

    @property
    def train_x(self) -> Tensor:
        return self.train_images

    @property
    def test_x(self) -> Tensor:
        return self.test_images

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.train_images.shape[1:])

    @property
    def classless(self) -> tuple[str, ...]:
        """The groups without classes: no label is known in the training set."""
        present = set(self.train_groups[self.train_labels >= 0].tolist()) if self.groups else set()
        return tuple(name for place, name in enumerate(self.groups) if place not in present)

    @cached_property
    def _sha256(self) -> str:
        arrays = [self.train_images, self.train_labels, self.test_images, self.test_labels]
        return sha256(*arrays, *([self.train_groups, self.test_groups] if self.groups else []))

    def describe(self) -> dict:
        """What identifies the data in a checkpoint, with a sha256 over images, labels and groups."""
        return {
            "name": self.name,
            "levels": self.levels,
            "classes": self.classes,
            "shape": list(self.shape),
            "train": len(self.train_images),
            "test": len(self.test_images),
            "sha256": self._sha256,
        } | ({"groups": list(self.groups), "classless": list(self.classless)} if self.groups else {})

    def _check_groups(self, name: str, rows: int) -> None:
        groups = getattr(self, name)
        if (groups is None) == bool(self.groups):
            raise ValueError(f"{self.name}: {name} is {'missing' if groups is None else 'given'} and groups is "
                             f"{self.groups}, expected both or neither")
        if self.groups:
            check_labels(f"{self.name}: {name}", groups, rows, 0, len(self.groups))


def _check_images(name: str, images: Tensor, levels: int) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"{name} has dtype {images.dtype}, expected torch.uint8 grey levels")
    if images.dim() != 4 or 0 in images.shape:
        raise ValueError(f"{name} has shape {tuple(images.shape)}, expected non-empty [N, C, H, W]")
    if int(images.max()) >= levels:
        raise ValueError(f"{name} holds level {int(images.max())}, expected values below levels = {levels}")
