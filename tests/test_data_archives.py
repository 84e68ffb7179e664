"""CIFAR-10 and Omniglot: small files in the published formats, damaged and harmful ones."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import require
from PIL import Image
from published import as_published

from fastflow import data as sets
from fastflow.data.cifar10 import CIFAR10, read_batch
from fastflow.data.omniglot import OMNIGLOT_SMALL, read_drawings


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2 and NumPy 1 did: byte strings as `str`, and NumPy's function under its old name."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_bytes(self, value):
        self.write(b"T" + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    def save_text(self, value):
        self.save_bytes(value.encode("latin1"))

    dispatch[bytes], dispatch[str] = save_bytes, save_text


def batch_bytes(content: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batch(rows: int, seed: int = 0) -> dict:
    images = np.random.default_rng(seed).integers(0, 256, (rows, 3072), np.uint8)
    return {"batch_label": "training batch", "labels": list(range(rows)), "data": images, "filenames": ["a.png"] * rows}


def test_cifar10_batches_are_planes_of_red_green_blue(tmp_path, monkeypatch):
    for seed, name in enumerate(CIFAR10.files):
        (tmp_path / name).write_bytes(batch_bytes(batch(2, seed)))
    as_published(monkeypatch, sets.cifar10, "CIFAR10", tmp_path, 10, 2)
    data = sets.cifar10(tmp_path)
    assert (data.shape, data.train_labels.tolist()) == ((3, 32, 32), [0, 1] * 5)
    assert data.train_images[3, 2, 5, 7] == batch(2, 1)["data"][1, 2 * 1024 + 5 * 32 + 7]
    assert np.array_equal(data.test_images.flatten(1), batch(2, 5)["data"])
    (tmp_path / "data_batch_3").write_bytes(batch_bytes(batch(2, 9)))
    with pytest.raises(ValueError, match="data_batch_3: its md5 is"):
        sets.cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(batch_bytes(batch(3)))
    with pytest.raises(ValueError, match="test_batch: 3 rows, expected the 2 of cifar10"):
        sets.cifar10(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3: no such file"):
        sets.cifar10(tmp_path)


class Malicious:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_cifar10_runs_no_code_of_a_pickle(tmp_path):
    path, marker = tmp_path / "test_batch", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"data": Malicious(marker)}, protocol=2))
    with pytest.raises(ValueError, match=r"test_batch: not a complete CIFAR-10 batch \(it asks for posix.mkdir\)"):
        read_batch(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.is_dir()  # the file was harmful indeed


def test_cifar10_names_a_damaged_batch(tmp_path):
    path, whole = tmp_path / "data_batch_1", batch_bytes(batch(2))
    for content in (whole[:-300], b"", b"text", batch_bytes({"labels": [1]}), batch_bytes(batch(2) | {"data": [1, 2]}),
                    batch_bytes(batch(2) | {"data": np.zeros((2, 3000), np.uint8)})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="data_batch_1: not a complete CIFAR-10 batch") as caught:
            read_batch(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(batch_bytes(batch(2) | {"labels": [1]}))
    with pytest.raises(ValueError, match="data_batch_1: 2 images and 1 labels"):
        read_batch(path)


def write_omniglot(path: Path, characters: list[str], drawers: int = 20) -> None:
    """Ink (black) in the left third of the paper."""
    paper = Image.new("1", (105, 105), 1)
    paper.paste(0, (0, 0, 35, 105))
    png = io.BytesIO()
    paper.save(png, "png")
    with zipfile.ZipFile(path, "w") as archive:
        for number, character in enumerate(characters):
            for drawer in range(1, drawers + 1):
                archive.writestr(f"set/{character}/{number:04}_{drawer:02}.png", png.getvalue())


def test_omniglot_is_ink_averaged_over_areas(tmp_path, monkeypatch):
    first, second = (tmp_path / name for name in OMNIGLOT_SMALL.files)
    write_omniglot(first, ["Greek/character01", "Latin/character02"])
    write_omniglot(second, ["Latin/character02", "Latin/character01"])
    as_published(monkeypatch, sets.omniglot_small, "OMNIGLOT_SMALL", tmp_path, 48, 12)
    data = sets.omniglot_small(tmp_path)
    assert (data.shape, data.classes) == ((1, 28, 28), 3)
    assert torch.bincount(data.train_labels).tolist() == [16] * 3
    assert torch.bincount(data.test_labels).tolist() == [4] * 3
    # 105 / 28 = 3.75: ink ends at 35, and the pixel that covers [33.75, 37.5] has the centres of 4 pixels, 1 of ink
    assert data.train_images[0, 0, 0].tolist() == [255] * 9 + [64] + [0] * 18
    assert sets.omniglot_small(tmp_path, side=21).train_images[0, 0, 0].tolist() == [255] * 7 + [0] * 14


def test_omniglot_names_the_archive_at_fault(tmp_path, monkeypatch):
    first, second = (tmp_path / name for name in OMNIGLOT_SMALL.files)
    for path in (first, second):
        write_omniglot(path, ["Greek/character01"])
    as_published(monkeypatch, sets.omniglot_small, "OMNIGLOT_SMALL", tmp_path, 16, 4)
    whole = first.read_bytes()
    damaged = bytearray(whole)
    damaged[60:80] = bytes(20)
    for content in (whole[:-100], b"", bytes(damaged)):
        first.write_bytes(content)
        with pytest.raises(ValueError, match=r"small1.zip: not a complete archive of Omniglot"):
            sets.omniglot_small(tmp_path)
    write_omniglot(first, [])
    with pytest.raises(ValueError, match=r"small1.zip: no image in it, expected <set>/<alphabet>"):
        read_drawings(first, 28)
    write_omniglot(first, ["Latin/character01"])
    with pytest.raises(ValueError, match=r"small1.zip: its md5 is"):
        sets.omniglot_small(tmp_path)
    with pytest.raises(ValueError, match="omniglot-small: side is 0, expected at least 1 pixel"):
        sets.omniglot_small(tmp_path, side=0)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"small2.zip: no such file; get it from https://github.com/brendenlake"):
        sets.omniglot_small(tmp_path)


def test_omniglot_is_the_published_data():
    require("data")
    data = sets.load("omniglot-small")
    assert (data.shape, data.classes, len(data.train_images), len(data.test_images)) == ((1, 28, 28), 242, 3872, 968)
    assert 15 < data.train_images.float().mean() < 25  # thin strokes of ink on empty paper
    assert int(data.train_images.max()) == 255
