"""The obfuscation probe: it finds the class where it is, and nothing where it is not."""

import pytest
import torch
from torch import nn

from fastflow.data import VectorData
from fastflow.figures import obfuscation_probe
from fastflow.figures.probe import probe_picture


class Separated(nn.Module):
    """z_f is the class, far from 0; z_h is noise, and what the given class is."""

    classes = 3

    def __init__(self, leak: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.leak = leak

    def reconstruct(self):
        raise NotImplementedError("only what the probe looks for")

    def embed(self, x, labels):
        z_h = x[:, 1:] + (labels[:, None] if self.leak else 0)
        return 100 + x[:, :1], z_h


def data(train: int = 600, test: int = 300, unknown: int = 0) -> VectorData:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(3, (train + test,), generator=generator)
    x = torch.cat([labels[:, None].float(), 0.1 * torch.randn(train + test, 4, generator=generator)], dim=1)
    known = labels.clone()
    known[:unknown] = -1
    return VectorData("made", 3, x[:train], known[:train], x[train:], labels[train:])


def test_the_class_is_found_where_it_is():
    found = obfuscation_probe(Separated(), data(), epochs=20)
    assert found["z_f"] == 1.0
    assert found["z_h"] < 0.45
    assert 0.25 < found["chance"] < 0.42
    assert (found["epochs"], found["train_rows"], found["test_rows"]) == (20, 600, 300)
    assert obfuscation_probe(Separated(), data(), epochs=20) == found
    assert obfuscation_probe(Separated(leak=True), data(), epochs=20)["z_h"] > 0.95


def test_only_rows_of_known_class_train_it_and_all_test_rows_test_it():
    found = obfuscation_probe(Separated(), data(unknown=500), epochs=1)
    assert (found["train_rows"], found["test_rows"]) == (100, 300)
    with pytest.raises(ValueError, match="made has no training row of known class, expected some"):
        obfuscation_probe(Separated(), data(unknown=600))


def test_it_leaves_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    obfuscation_probe(Separated(), data(), epochs=1)
    assert torch.equal(torch.rand(2), expected)


def test_chance_is_the_most_frequent_training_class_and_is_drawn():
    few = data()
    labels = torch.where(torch.arange(600) < 400, 1, few.train_labels)
    skewed = VectorData("skewed", 3, few.train_features, labels, few.test_features, few.test_labels)
    found = obfuscation_probe(Separated(), skewed, epochs=1)
    assert found["chance"] == pytest.approx((few.test_labels == 1).double().mean().item())
    bars = probe_picture(found).axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([100 * found[name] for name in ("z_f", "z_h", "chance")])
