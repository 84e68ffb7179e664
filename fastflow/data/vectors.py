"""Feature vectors (tables, embeddings, points of the plane) as tensors, checked once; beside ImageData."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fastflow.data.labels import check_labels, sha256


@dataclass(frozen=True)
class VectorData:
    """A training and a test set of vectors, which have a density as they are: no grey levels, no dequantisation.

    `train_features`, `test_features` float32 [N, D], finite; `train_labels`, `test_labels` int64 [N] with values in
    [0, classes), -1 = unknown (training only). `origin`: the sha256 of what the features were computed from, which
    identifies them where another machine's rounding differs. Raises TypeError or ValueError naming the array at fault.
    """

    name: str
    classes: int
    train_features: Tensor
    train_labels: Tensor
    test_features: Tensor
    test_labels: Tensor
    origin: str | None = None

    def __post_init__(self):
        for part, lowest in (("train", -1), ("test", 0)):
            features, labels = getattr(self, f"{part}_features"), getattr(self, f"{part}_labels")
            check_features(f"{self.name}: {part}_features", features)
            check_labels(f"{self.name}: {part}_labels", labels, len(features), lowest, self.classes)
        if self.train_features.shape[1] != self.test_features.shape[1]:
            raise ValueError(
                f"{self.name}: test_features have {self.test_features.shape[1]} columns, "
                f"expected {self.train_features.shape[1]} as train_features"
            )

    levels = 1  # as many grey levels as continuous data have, see `ClassFlow`
    train_groups = test_groups = None  # only sets of images are joined of others

    @property
    def train_x(self) -> Tensor:
        return self.train_features

    @property
    def test_x(self) -> Tensor:
        return self.test_features

    @property
    def shape(self) -> tuple[int]:
        """(D,) of one vector."""
        return tuple(self.train_features.shape[1:])

    @cached_property
    def _sha256(self) -> str:
        return sha256(self.train_features, self.train_labels, self.test_features, self.test_labels)

    def describe(self) -> dict:
        """What identifies the data in a checkpoint, with a sha256 over features and labels, or of their origin."""
        return {
            "name": self.name,
            "classes": self.classes,
            "shape": list(self.shape),
            "train": len(self.train_features),
            "test": len(self.test_features),
            "sha256": self.origin or self._sha256,
        }


def standardize(data: VectorData) -> VectorData:
    """Both parts shifted and scaled to mean 0 and standard deviation 1 of each training column, taken in float64.

    Raises ValueError naming the first training column that is constant.
    """
    train = data.train_features.double()
    mean, deviation = train.mean(0), train.std(0, correction=0)
    constant = (data.train_features == data.train_features[0]).all(0).nonzero()
    if len(constant):
        raise ValueError(f"{data.name}: column {int(constant[0])} of train_features is constant; leave it out")
    train, test = (((part.double() - mean) / deviation).float() for part in (train, data.test_features))
    return replace(data, train_features=train, test_features=test, origin=None)


def check_features(name: str, features: Tensor) -> None:
    """Raises TypeError or ValueError unless `features` is float32 [N, D], not empty, and finite."""
    if features.dtype != torch.float32:
        raise TypeError(f"{name} has dtype {features.dtype}, expected torch.float32")
    if features.dim() != 2 or 0 in features.shape:
        raise ValueError(f"{name} has shape {tuple(features.shape)}, expected non-empty [N, D]")
    strange = (~features.isfinite()).nonzero()
    if len(strange):
        row, column = strange[0].tolist()
        raise ValueError(f"{name} holds {features[row, column].item()} in row {row}, column {column}, expected numbers")
