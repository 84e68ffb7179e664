"""Data sets and label selection: values, splits that never change, and errors that name the file."""

import gzip
import hashlib
import zipfile

import numpy as np
import pytest
import torch
from needs import require

from fastflow.data import ImageData, digits, idx, mnist, npz, read_idx, split_rows


def test_digits_are_17_levels_in_one_fixed_split():
    data = digits()
    assert data.train_images.shape == (1297, 1, 8, 8)
    assert data.test_images.shape == (500, 1, 8, 8)
    assert data.train_images.dtype == torch.uint8
    assert int(data.train_images.max()) == 16
    assert np.bincount(data.test_labels).min() >= 48
    published = "307958f88c1152a706844da40c03a6c4e068f8e80ba4c5e3a52eef172e0ba7c9"
    assert data.describe()["sha256"] == published


@pytest.mark.parametrize(
    ("seed", "published"), [(0, "93400283c075dfd3"), (1, "444e419793b3edf1"), (2, "a7cf4c4a247864c3")]
)
def test_labelled_rows_of_a_seed_are_published(seed, published):
    split = split_rows(digits().train_labels.numpy(), 10, 100, seed)
    assert hashlib.sha256(split.labelled.astype("<i8").tobytes()).hexdigest()[:16] == published


def test_split_covers_the_training_set_once():
    labels = np.repeat(np.arange(10), 30)
    split = split_rows(labels, 10, 50, seed=3, monitor=40)
    rows = np.concatenate([split.labelled, split.unlabelled, split.monitor])
    assert sorted(rows) == list(range(300))
    assert (np.bincount(labels[split.labelled], minlength=10) == 5).all()
    assert (np.bincount(labels[split.monitor], minlength=10) == 4).all()
    kept = split_rows(labels, 10, 50, seed=3, monitor=40, hold_out=False)
    assert (kept.labelled == split.labelled).all()
    assert sorted(kept.unlabelled) == sorted(np.concatenate([split.unlabelled, split.monitor]))


def test_split_gives_a_rare_class_one_label():
    labels = np.array([0] * 500 + [1] * 300 + [2] * 3)
    for seed in range(5):
        split = split_rows(labels, 3, 6, seed)
        counts = np.bincount(labels[split.labelled], minlength=3)
        assert counts.sum() == 6
        assert counts.min() == 1
        assert len(np.unique(np.concatenate([split.labelled, split.unlabelled]))) == len(labels)


def test_split_leaves_unknown_labels_unlabelled():
    labels = np.array([0, 1, -1, 0, 1, -1, 0, 1])
    split = split_rows(labels, 2, 2, seed=0)
    assert set(labels[split.labelled]) == {0, 1}
    assert {2, 5} <= set(split.unlabelled)


def test_split_without_labels_and_with_all():
    labels = np.repeat(np.arange(4), 5)
    assert len(split_rows(labels, 4, 0, seed=0).labelled) == 0
    assert len(split_rows(labels, 4, 20, seed=0).unlabelled) == 0


@pytest.mark.parametrize(
    ("labels", "count", "monitor", "message"),
    [
        (np.repeat(np.arange(4), 5), 3, 0, "data.labels is 3, expected 0 or at least 4"),
        (np.repeat(np.arange(4), 5), 15, 6, "data.labels + data.monitor is 15 + 6, expected at most 20"),
        (np.array([0, 0, 1, 1, 3, 3]), 4, 0, "class 2 has no image"),
    ],
)
def test_split_refuses_impossible_counts(labels, count, monitor, message):
    with pytest.raises(ValueError, match="data") as caught:
        split_rows(labels, 4, count, seed=0, monitor=monitor)
    assert message in str(caught.value)


def write_idx(path, array, magic=None, cut=0):
    header = (magic or 0x0800 + array.ndim).to_bytes(4, "big") + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    content = gzip.compress(content)[: -cut or None] if path.suffix == ".gz" else content[: len(content) - cut]
    path.write_bytes(content)


@pytest.fixture
def idx_folder(tmp_path):
    images = np.arange(4 * 3 * 2).reshape(4, 3, 2)
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", np.array([3, 1, 4, 1]))
    return tmp_path


def test_idx_files_gzipped_and_plain(idx_folder):
    data = idx(idx_folder)
    assert (data.name, data.classes) == (str(idx_folder), 5)
    assert data.train_images.shape == (4, 1, 3, 2)
    assert data.train_images.flatten().tolist() == list(range(24))
    assert data.test_labels.tolist() == [3, 1, 4, 1]


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((4, 3, 2)), {"magic": 0x0801}, "magic number 0x00000801, expected 0x00000803"),
        (np.zeros((4, 3, 2)), {"cut": 5}, "not a complete gzip file"),
        (np.zeros((0,)), {"magic": 0x0803}, "bytes, expected a header of 16"),
    ],
)
def test_broken_idx_file_is_named(idx_folder, array, options, message):
    path = idx_folder / "train-images-idx3-ubyte.gz"
    write_idx(path, array, **options)
    with pytest.raises(ValueError, match="train-images") as caught:
        idx(idx_folder)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_short_idx_file_is_named(tmp_path):
    write_idx(tmp_path / "file", np.zeros((4, 3, 2)), cut=1)
    with pytest.raises(ValueError, match=r"file: 23 bytes of data, expected 24 for \(4, 3, 2\); get the file again"):
        read_idx(tmp_path / "file", dimensions=3)


def test_missing_mnist_says_where_to_put_it(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte.gz: no such file; get it from https"):
        mnist(tmp_path)
    monkeypatch.delenv("FASTFLOW_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="FASTFLOW_DATA"):
        mnist()


def test_mnist_is_the_published_data():
    require("data")
    data = mnist()
    assert data.train_images.shape == (60000, 1, 28, 28)
    assert data.test_images.shape == (10000, 1, 28, 28)
    assert (data.name, data.classes, int(data.train_images.max())) == ("mnist", 10, 255)
    labels = hashlib.md5(bytes.fromhex("0000080100002710") + data.test_labels.to(torch.uint8).numpy().tobytes())
    assert labels.hexdigest() == "27ae3e4e09519cfbb04c329615203637"


def arrays(**changes):
    images, labels = np.zeros((4, 3, 3), np.uint8), np.array([0, 1, -1, 1])
    return {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels % 2} | changes


def test_npz_reads_arrays(tmp_path):
    np.savez(tmp_path / "own.npz", **arrays())
    data = npz(tmp_path / "own.npz", levels=4)
    assert (data.classes, data.levels, data.shape) == (2, 4, (1, 3, 3))
    assert data.train_labels.tolist() == [0, 1, -1, 1]
    np.savez(tmp_path / "bare.npz", **{name: array for name, array in arrays().items() if name.endswith("images")})
    bare = npz(tmp_path / "bare.npz", levels=4)
    assert torch.equal(bare.train_images, data.train_images)
    assert bare.classes == 1
    assert split_rows(bare.train_labels.numpy(), 1, 0, seed=0, monitor=2).monitor.size == 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_images": np.zeros((4, 3, 3))}, TypeError, "train_images has dtype float64, expected integers"),
        ({"train_images": np.full((4, 3, 3), 9)}, ValueError, r"train_images lies in \[9, 9\] with data.levels = 4"),
        ({"train_labels": np.zeros(3, int)}, ValueError, r"train_labels has shape \(3,\), expected \(4,\)"),
        ({"test_labels": np.array([0, 1, 0, -1])}, ValueError, r"test_labels lies in \[-1, 1\], expected \[0, 1\]"),
        ({"test_images": np.zeros((4, 2, 3), int)}, ValueError, r"test_images have shape \(1, 2, 3\)"),
        ({"train_images": np.zeros((4, 3), int)}, ValueError, r"train_images has shape \(4, 3\), expected non-empty"),
        ({"train_images": np.zeros((0, 3, 3), int)}, ValueError, "expected non-empty"),
        ({"train_labels": np.array([0, 1, 10**12, 1])}, ValueError, "train_labels holds label 10{12}, expected .* 8"),
        ({"test_labels": np.array([{}, 1, 1, 1])}, ValueError, "own.npz: not a complete .npz file .Object arrays"),
    ],
)
def test_npz_errors_name_the_array(tmp_path, changes, error, message):
    np.savez(tmp_path / "own.npz", **arrays(**changes))
    with pytest.raises(error, match=message):
        npz(tmp_path / "own.npz", levels=4)


def spoiled(path) -> bytes:
    """A compressed archive whose first member does not inflate."""
    np.savez_compressed(path, **arrays(train_images=np.arange(9000).reshape(10, 30, 30)))
    content = bytearray(path.read_bytes())
    content[80:90] = bytes(10)
    return bytes(content)


def test_npz_errors_name_the_file(tmp_path):
    np.savez(tmp_path / "own.npz", train_images=np.zeros((1, 1, 1)), test_images=np.zeros(0), test_labels=np.zeros(0))
    with pytest.raises(ValueError, match=r"own.npz: no array 'train_labels'"):
        npz(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", train_images=np.zeros((1, 1, 1)))
    with pytest.raises(ValueError, match=r"own.npz: no array 'test_images', expected train_images, test_images"):
        npz(tmp_path / "own.npz")
    whole = (tmp_path / "own.npz").read_bytes()
    spoilt = spoiled(tmp_path / "squeezed.npz")
    for content in (whole[:40], b"", b"text\n", spoilt, whole.replace(b"\x93NUMPY", b"xxxxxx")):
        (tmp_path / "own.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"own.npz: not a complete .npz") as caught:
            npz(tmp_path / "own.npz")
        assert "\n" not in str(caught.value)
    np.save(tmp_path / "own.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"own.npy: not a complete .npz file \(it is a single array\)"):
        npz(tmp_path / "own.npy")
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("train_images", b"text")
    with pytest.raises(ValueError, match=r"own.npz: train_images is not an array"):
        npz(tmp_path / "own.npz")
    with pytest.raises(FileNotFoundError):
        npz(tmp_path / "absent.npz")


def test_images_are_integer_levels():
    images, labels = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"own: train_images has dtype torch.float32, expected torch.uint8"):
        ImageData("own", 4, 2, images, labels, images, labels)
