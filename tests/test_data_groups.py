"""Sets joined of others: MNIST and Omniglot at 32 x 32, and the groups of ImageData."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from needs import require
from published import as_published
from test_data import write_idx
from test_data_archives import write_omniglot

from fastflow import data as sets
from fastflow.data import ImageData, load, mnist_omniglot, mnist_omniglot_small, split_rows
from fastflow.data.omniglot import OMNIGLOT, OMNIGLOT_SMALL


@pytest.fixture
def root(tmp_path, monkeypatch):
    """3 + 2 digits, and 2 characters of 16 + 4 drawings, in both forms of Omniglot."""
    for folder in ("mnist", "omniglot"):
        (tmp_path / folder).mkdir()
    for prefix, labels in (("train", [3, 1, 4]), ("t10k", [9, 3])):
        write_idx(tmp_path / f"mnist/{prefix}-images-idx3-ubyte.gz", np.full((len(labels), 28, 28), 7))
        write_idx(tmp_path / f"mnist/{prefix}-labels-idx1-ubyte.gz", np.array(labels))
    for official in (OMNIGLOT, OMNIGLOT_SMALL):
        for name, character in zip(official.files, ("Greek/character01", "Latin/character02"), strict=True):
            write_omniglot(tmp_path / "omniglot" / name, [character])
    as_published(monkeypatch, sets.mnist, "MNIST", tmp_path / "mnist", 3, 2)
    monkeypatch.setitem(sets.mnist.__globals__, "MNIST", replace(sets.mnist.__globals__["MNIST"], of_content=False))
    for loader, name in ((sets.omniglot, "OMNIGLOT"), (sets.omniglot_small, "OMNIGLOT_SMALL")):
        as_published(monkeypatch, loader, name, tmp_path / "omniglot", 32, 8)
    return tmp_path


@pytest.mark.parametrize("name", ["mnist-omniglot", "mnist-omniglot-small"])
def test_the_joint_set_is_its_parts(root, name, monkeypatch):
    data = load(name, root)
    assert (data.name, data.shape, data.classes, data.groups) == (name, (1, 32, 32), 10, ("mnist", "omniglot"))
    assert data.train_groups.tolist() == [0] * 3 + [1] * 32
    assert data.test_groups.tolist() == [0] * 2 + [1] * 8
    assert data.train_labels.tolist() == [3, 1, 4] + [-1] * 32
    assert data.test_labels.tolist() == [9, 3] + [-1] * 8
    digit, border = data.train_images[0, 0], data.train_images[0, 0].clone()
    border[2:30, 2:30] = 0
    assert (digit[2:30, 2:30] == 7).all()
    assert not border.any()
    drawings = (sets.omniglot if name == "mnist-omniglot" else sets.omniglot_small)(root / "omniglot", 32)
    assert torch.equal(data.test_images[2:], drawings.test_images)
    assert data.classless == ("omniglot",)
    monkeypatch.setenv("FASTFLOW_DATA", str(root))
    loader = {"mnist-omniglot": mnist_omniglot, "mnist-omniglot-small": mnist_omniglot_small}[name]
    assert loader().describe() == data.describe()
    split = split_rows(data.train_labels.numpy(), 10, 0, seed=0)
    assert len(split.unlabelled) == 35


def test_what_is_missing_is_named_by_the_part(root):
    (root / "omniglot" / "images_background_small2.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"omniglot/images_background_small2.zip: no such file; get it from"):
        load("mnist-omniglot-small", root)
    (root / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"mnist/t10k-labels-idx1-ubyte.gz: no such file; get it from"):
        load("mnist-omniglot", root)


def test_no_folder_names_both(monkeypatch):
    monkeypatch.delenv("FASTFLOW_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="FASTFLOW_DATA to a folder with mnist/ and omniglot/ inside"):
        load("mnist-omniglot")


def test_the_joint_set_is_the_published_data():
    require("data")
    data, digits = load("mnist-omniglot-small"), sets.mnist(f"{os.environ['FASTFLOW_DATA']}/mnist")
    assert (len(data.train_images), len(data.test_images)) == (63_872, 10_968)
    assert torch.equal(data.train_images[:60_000, :, 2:30, 2:30], digits.train_images)
    assert torch.equal(data.test_labels[:10_000], digits.test_labels)
    assert 15 < data.train_images[60_000:].float().mean() < 25  # thin strokes of ink on empty paper


def grouped(**changes) -> ImageData:
    images, labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([1, -1, 0])
    groups = torch.tensor([0, 1, 0])
    return ImageData(**{"name": "own", "levels": 2, "classes": 2, "train_images": images, "train_labels": labels,
                        "test_images": images, "test_labels": labels, "groups": ("a", "b"), "train_groups": groups,
                        "test_groups": groups} | changes)


def test_groups_identify_the_data():
    data = grouped()
    plain = grouped(groups=(), train_groups=None, test_groups=None, test_labels=torch.tensor([1, 1, 0]))
    assert data.describe()["groups"] == ["a", "b"]
    assert "groups" not in plain.describe()
    assert (data.classless, plain.classless) == (("b",), ())
    others = [grouped(groups=("a", "c")), grouped(test_groups=torch.tensor([0, 1, 1])),
              grouped(train_groups=torch.tensor([1, 1, 0]))]  # fmt: skip
    assert all(other.describe() != data.describe() for other in others)


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"test_groups": None}, ValueError, r"own: test_groups is missing and groups is \('a', 'b'\), expected both"),
    ({"groups": ()}, ValueError, r"own: train_groups is given and groups is \(\), expected both or neither"),
    ({"train_groups": torch.tensor([0, 2, 0])}, ValueError, r"own: train_groups lies in \[0, 2\], expected \[0, 1\]"),
    ({"train_groups": torch.tensor([0, -1, 0])}, ValueError, r"own: train_groups lies in \[-1, 0\], expected"),
    ({"test_groups": torch.tensor([0, 1])}, ValueError, r"own: test_groups has shape \(2,\), expected \(3,\)"),
    ({"test_groups": torch.zeros(3)}, TypeError, "own: test_groups has dtype torch.float32, expected torch.int64"),
    ({"groups": (), "train_groups": None, "test_groups": None}, ValueError,
     r"own: test_labels lies in \[-1, 1\], expected \[0, 1\]"),
])  # fmt: skip
def test_groups_at_fault_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        grouped(**changes)
