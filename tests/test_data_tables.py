"""Tables in three formats, from this program and others, and what is wrong with one that cannot be read."""

import gzip

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from fastflow.data import read_table, tables
from fastflow.data.labels import count_classes
from fastflow.data.tables import _read_parquet


def write_csv(path, lines: list[str]) -> None:
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_csv_tables(tmp_path, ending):
    write_csv(tmp_path / f"train{ending}", ["a, label,b", "1.5,0,-2", "3,-1,4e2", "0,2,1"])
    write_csv(tmp_path / f"test{ending}", ["a,label,b", "1,1,2"])
    data = tables(tmp_path / f"train{ending}", tmp_path / f"test{ending}")
    assert data.train_features.tolist() == [[1.5, -2.0], [3.0, 400.0], [0.0, 1.0]]
    assert (data.train_labels.tolist(), data.test_labels.tolist(), data.classes) == ([0, -1, 2], [1], 3)
    assert read_table(tmp_path / f"test{ending}", label="a")[0].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        (["a,b", "1,2"], ValueError, "0 of the columns a, b are named 'label', expected one"),
        (["label,label", "1,2"], ValueError, "2 of the columns label, label are named 'label', expected one"),
        ([",a,label", "0,1,2"], ValueError, "a column of '', 'a', 'label' is pandas' row index, expected features"),
        (["a,label", "#1,2", "1,2"], ValueError, "not a table of numbers .could not convert string '#1'"),
        (["a,label", "inf,2"], ValueError, "features holds inf in row 0, column 0"),
        (["a,label", "1,-2"], ValueError, r"labels lies in \[-2, -2\], expected \[-1, 0\]"),
        (["a,label", "1,1e300"], TypeError, "not whole, expected whole numbers"),
        (["a,label", "1,x"], ValueError, "not a table of numbers .could not convert string 'x'"),
        (["a,label", "1,2", "1"], ValueError, "not a table of numbers"),
        (["a,label"], ValueError, "not a table of numbers .no row of numbers"),
        (["a,label", "1,2,3"], ValueError, "3 columns under 2 names"),
        (["a,label", "1,0.5"], TypeError, "not whole, expected whole numbers"),
        (["a,label", "1,nan"], TypeError, "not whole, expected whole numbers"),
    ],
)
def test_csv_errors_name_the_file(tmp_path, lines, error, message):
    write_csv(tmp_path / "own.csv", lines)
    with pytest.raises(error, match=f"own.csv: .*{message}"):
        read_table(tmp_path / "own.csv")


@pytest.mark.parametrize(("lines", "message"), [
    (["a,label", "nan,0"], "features holds nan in row 0, column 0"),
    (["a,label", "1,-1"], r"labels lies in \[-1, -1\], expected \[0, 1\]"),
    (["a,label", "1,9"], r"labels lies in \[9, 9\], expected \[0, 2\]"),  # no more classes than rows
])
def test_the_one_of_two_tables_at_fault_is_named(tmp_path, lines, message):
    write_csv(tmp_path / "train.csv", ["a,label", "1,0", "2,1"])
    write_csv(tmp_path / "test.csv", lines)
    with pytest.raises(ValueError, match=f"test.csv: {message}"):
        tables(tmp_path / "train.csv", tmp_path / "test.csv")


def test_there_is_a_class_even_without_labels():
    assert count_classes(torch.tensor([-1, -1]), torch.zeros(0, dtype=torch.int64)) == 1
    assert count_classes(torch.tensor([-1, 3]), torch.tensor([2])) == 4


def test_tables_of_spreadsheets(tmp_path):
    (tmp_path / "own.csv").write_bytes(b'\xef\xbb\xbf"label","a"\r\n"1","2.5"\r\n')
    features, labels = read_table(tmp_path / "own.csv")
    assert (features.tolist(), labels.tolist()) == ([[2.5]], [1])


def test_npz_tables(tmp_path):
    """Of any byte order; of real numbers alone."""
    features, labels = np.array([[1.5, 2], [3, 4]], ">f8"), np.array([1, 0], ">i2")
    np.savez(tmp_path / "own.npz", features=features, labels=labels)
    found = read_table(tmp_path / "own.npz")
    assert (found[0].tolist(), found[1].tolist()) == (features.tolist(), [1, 0])
    for wrong, error, message in (({"features": features * 1j}, TypeError, "features are complex128"),
                                  ({"labels": labels * 1j}, TypeError, "labels are complex128"),
                                  ({"labels": labels[:1]}, ValueError, r"labels has shape \(1,\), expected \(2,\)")):
        np.savez(tmp_path / "own.npz", **{"features": features, "labels": labels} | wrong)
        with pytest.raises(error, match=f"own.npz: {message}"):
            read_table(tmp_path / "own.npz")
    with pytest.raises(ValueError, match=r"own.npz: label is 'kind', expected none for an .npz file"):
        read_table(tmp_path / "own.npz", "kind")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match=r"folder.npz: not a complete .npz file \(\[Errno 21\] Is a directory"):
        read_table(tmp_path / "folder.npz")


def test_table_files_are_named(tmp_path):
    for name in ("absent.csv", "absent.csv.gz", "absent.npz"):
        with pytest.raises(FileNotFoundError, match=name):
            read_table(tmp_path / name)
    with pytest.raises(ValueError, match=r"own.txt: expected a name that ends in .npz, .csv, .csv.gz, .parquet"):
        read_table(tmp_path / "own.txt")
    path = tmp_path / "own.csv.gz"
    write_csv(path, ["a,label", "1,2"])
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:10] + bytes([255] * 5) + whole[15:], b"text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"own.csv.gz: not a table of numbers"):
            read_table(path)
    write_csv(tmp_path / "one.csv", ["a,label", "1,2"])
    write_csv(tmp_path / "two.csv", ["a,b,label", "1,2,0"])
    with pytest.raises(ValueError, match=r"two.csv: 2 features, expected 1 as in .*one.csv"):
        tables(tmp_path / "one.csv", tmp_path / "two.csv")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(_read_parquet.__globals__, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"own.parquet: Parquet needs pyarrow, .* pip install 'fastflow\[parquet\]'"):
        read_table(tmp_path / "own.parquet")


def test_parquet_tables(tmp_path):
    path = tmp_path / "own.parquet"
    parquet.write_table(pyarrow.table({"a": [1.5, 2.0], "label": [1, 0], "b": [3, 4]}), path)
    features, labels = read_table(path)
    assert (features.tolist(), labels.tolist()) == ([[1.5, 3.0], [2.0, 4.0]], [1, 0])
    parquet.write_table(pyarrow.table({"a": [1.5], "label": [1], "__index_level_0__": [7]}), path)
    with pytest.raises(ValueError, match=r"own.parquet: a column of .* is pandas' row index"):
        read_table(path)
    parquet.write_table(pyarrow.table({"a": ["x"], "label": [1]}), path)
    with pytest.raises(TypeError, match=r"own.parquet: column 'a' holds object, expected numbers"):
        read_table(path)
    parquet.write_table(pyarrow.table({"a": [1.5] * 5000, "label": list(range(5000))}), path)
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1 and no more", whole[: len(whole) // 2], whole[:50] + bytes(200) + whole[250:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"own.parquet: not a complete Parquet file"):
            read_table(path)
