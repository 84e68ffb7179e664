"""Checksums of official files; SVHN and small NORB: small files in the published formats, and damaged ones."""

import gzip
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import require
from published import as_published
from scipy.io import savemat

from fastflow import data as sets
from fastflow.data.cifar10 import CIFAR10
from fastflow.data.norb import SMALL_NORB, read_norb
from fastflow.data.svhn import read_svhn


def test_find_takes_the_unpacked_file_for_the_gzipped(tmp_path):
    (tmp_path / "data_batch_1.gz").touch()
    name = next(iter(SMALL_NORB.files))
    (tmp_path / name.removesuffix(".gz")).touch()
    assert SMALL_NORB.find(tmp_path, name).suffix == ".mat"
    with pytest.raises(FileNotFoundError, match=r"data_batch_1: no such file; get it from https://www.cs.toronto"):
        CIFAR10.find(tmp_path, "data_batch_1")


def test_a_checksum_is_of_the_file_or_of_its_content(tmp_path):
    packed, plain = tmp_path / "a.gz", tmp_path / "a"
    packed.write_bytes(gzip.compress(b"text"))
    plain.write_bytes(b"text")
    of_content = replace(CIFAR10, files={"a.gz": hashlib.md5(b"text").hexdigest()}, of_content=True)
    of_file = replace(CIFAR10, files={"a.gz": hashlib.sha256(packed.read_bytes()).hexdigest()})
    for path in (packed, plain):
        of_content.verify(path)
        of_file.verify(path)
    plain.write_bytes(b"Text")
    of_file.verify(plain)  # no checksum of the unpacked file is published
    with pytest.raises(ValueError, match=r"a: its md5 is .*, expected .*: not the file that cifar10 was published as"):
        of_content.verify(plain)
    packed.write_bytes(gzip.compress(b"Text"))
    for official, kind in ((of_content, "md5"), (of_file, "sha256")):
        with pytest.raises(ValueError, match=f"a.gz: its {kind} is"):
            official.verify(packed)


def test_mnist_refuses_another_set_of_its_shape(tmp_path):
    require("data")
    shutil.copytree(Path(os.environ["FASTFLOW_DATA"]) / "mnist", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[8] ^= 1
    path.unlink()
    path.with_suffix("").write_bytes(content)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte: its md5 is"):
        sets.mnist(tmp_path)
    with pytest.raises(ValueError, match=r"ubyte.gz: its md5 is .* not the file that kmnist was published as"):
        sets.kmnist(tmp_path)


def write_svhn(path: Path, labels: list[int], **changes) -> np.ndarray:
    images = np.random.default_rng(len(labels)).integers(0, 256, (32, 32, 3, len(labels)), np.uint8)
    savemat(path, {"X": images, "y": np.array(labels, np.uint8)[:, None]} | changes, do_compression=True)
    return images


@pytest.fixture
def svhn_folder(tmp_path, monkeypatch):
    for name, labels in (("train", [10, 1, 9]), ("test", [2, 10]), ("extra", [5, 5, 10, 6])):
        write_svhn(tmp_path / f"{name}_32x32.mat", labels)
    as_published(monkeypatch, sets.svhn, "SVHN", tmp_path, 3, 2)
    as_published(monkeypatch, sets.svhn_extra, "SVHN_EXTRA", tmp_path, 7, 2)
    return tmp_path


def test_svhn_is_read_with_ten_as_zero(svhn_folder):
    data = sets.svhn(svhn_folder)
    images = write_svhn(svhn_folder / "again.mat", [10, 1, 9])
    assert (data.shape, data.classes, data.levels) == ((3, 32, 32), 10, 256)
    assert data.train_labels.tolist() == [0, 1, 9]
    assert data.test_labels.tolist() == [2, 0]
    assert (data.train_images[1, 2, 5, 7]).item() == images[5, 7, 2, 1]
    more = sets.svhn_extra(svhn_folder)
    assert more.train_labels.tolist() == [0, 1, 9, 5, 5, 0, 6]
    assert torch.equal(more.train_images[:3], data.train_images)


def test_svhn_names_the_file_at_fault(svhn_folder):
    path = svhn_folder / "train_32x32.mat"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"text" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"train_32x32.mat: not a complete MATLAB 5 file") as caught:
            sets.svhn(svhn_folder)
        assert "\n" not in str(caught.value)
    write_svhn(path, [1, 2])
    with pytest.raises(ValueError, match=r"train_32x32.mat: 2 rows, expected the 3 of svhn; get it from http"):
        sets.svhn(svhn_folder)
    write_svhn(path, [3, 2, 1])
    with pytest.raises(ValueError, match=r"train_32x32.mat: its md5 is"):
        sets.svhn(svhn_folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train_32x32.mat: no such file; get it from http://ufldl"):
        sets.svhn(svhn_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.array([[0], [1]], np.uint8)}, r"labels lie in \[0, 1\], expected \[1, 10\]"),
        ({"y": np.array([[1]], np.uint8)}, r"X is \(32, 32, 3, 2\) and y \(1, 1\), expected"),
        ({"y": np.array([[1.0], [2.0]])}, "y is float64"),
        ({"X": np.zeros((2, 3), np.uint8)}, r"X is uint8 \(2, 3\), expected uint8 with 4 dimensions"),
    ],
)
def test_svhn_arrays_are_checked(tmp_path, changes, message):
    write_svhn(tmp_path / "a.mat", [1, 2], **changes)
    with pytest.raises(ValueError, match=message):
        read_svhn(tmp_path / "a.mat")
    savemat(tmp_path / "b.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8)})
    with pytest.raises(ValueError, match="no array 'y'"):
        read_svhn(tmp_path / "b.mat")


def norb_bytes(array: np.ndarray, magic: int | None = None) -> bytes:
    magic = magic or {"u1": 0x1E3D4C55, "i4": 0x1E3D4C54}[array.dtype.str[1:]]
    sizes = [*array.shape, 1, 1][: max(3, array.ndim)]
    return np.array([magic, array.ndim, *sizes], "<i4").tobytes() + array.tobytes()


@pytest.fixture
def norb_folder(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for number, name in enumerate(SMALL_NORB.files):
        rows = 3 if "train" in name else 2
        array = random.integers(0, 256, (rows, 2, 96, 96), np.uint8) if "dat" in name else np.arange(rows, dtype="<i4")
        packed = gzip.compress(norb_bytes(array)) if number else norb_bytes(array)
        (tmp_path / (name if number else name.removesuffix(".gz"))).write_bytes(packed)
    as_published(monkeypatch, sets.small_norb, "SMALL_NORB", tmp_path, 3, 2)
    return tmp_path


def test_small_norb_gzipped_and_plain(norb_folder):
    data = sets.small_norb(norb_folder)
    assert (data.shape, data.classes) == ((2, 96, 96), 5)
    first = np.random.default_rng(0).integers(0, 256, (3, 2, 96, 96), np.uint8)
    assert np.array_equal(data.train_images, first)
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0, 1, 2], [0, 1])


def test_small_norb_is_little_endian_as_published(tmp_path):
    header = bytes.fromhex("544c3d1e" + "01000000" + "02000000" + "01000000" * 2)
    (tmp_path / "cat.mat").write_bytes(header + bytes([4, 0, 0, 0, 3, 0, 0, 0]))
    assert read_norb(tmp_path / "cat.mat", np.dtype("<i4"), 1).tolist() == [4, 3]


def test_small_norb_names_the_file_at_fault(norb_folder):
    images, labels = (norb_folder / name for name in list(SMALL_NORB.files)[2:])
    whole = images.read_bytes()
    array = np.zeros((2, 2, 96, 96), np.uint8)
    bad = {
        "not a complete gzip file": whole[: len(whole) // 2],
        "4 bytes, expected a header of 24": gzip.compress(b"1234"),
        "magic number 0x1e3d4c54 and 4 dimensions, expected 4": gzip.compress(norb_bytes(array, 0x1E3D4C54)),
        r"36863 bytes of data, expected 36864 for \(2, 2, 96, 96\)": gzip.compress(norb_bytes(array)[:-1]),
        r"rows of shape \(2, 96, 95\), expected \(2, 96, 96\)": gzip.compress(norb_bytes(array[..., 1:])),
        "1 rows, expected the 2 of small-norb": gzip.compress(norb_bytes(array[1:])),
        "its md5 is": gzip.compress(norb_bytes(array)),
    }
    for message, content in bad.items():
        images.write_bytes(content)
        with pytest.raises(ValueError, match=f"testing-dat.mat.gz: {message}"):
            sets.small_norb(norb_folder)
    images.write_bytes(whole)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match=r"testing-cat.mat.gz: no such file; get it from https://cs.nyu.edu"):
        sets.small_norb(norb_folder)
