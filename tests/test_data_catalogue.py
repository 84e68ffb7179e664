"""The named data sets: by name from a root, on the command line, and in the configuration of a run."""

import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from needs import require
from small_run import call
from test_data import write_idx
from tiny_flow import SMALL

from fastflow.data import DATA_SETS, ImageData, digits, kmnist, load
from fastflow.training.build import load_data
from fastflow.training.config import DataConfig
from fastflow.training.config_file import parse_config


@pytest.mark.parametrize("name", ["digits", "moons", "circles", "eight-gaussians", "pinwheel"])
def test_sets_without_files_are_what_the_list_says(name):
    official, data = DATA_SETS[name].official, load(name)
    assert (data.name, data.classes, data.shape) == (name, official.classes, official.shape)
    about = data.describe()
    assert (about["train"], about["test"]) == (official.train, official.test)


def test_a_set_lies_in_its_folder_of_the_root(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTFLOW_DATA", raising=False)
    with_files = [name for name, entry in DATA_SETS.items() if entry.official.files]
    assert with_files
    for name in with_files:
        folder = tmp_path / (DATA_SETS[name].official.place or name)
        with pytest.raises(FileNotFoundError) as caught:
            load(name, tmp_path)
        assert str(caught.value).startswith(f"{folder}/")
        with pytest.raises(FileNotFoundError, match=f"{name}: no folder given; set data.path"):
            load(name)
    with pytest.raises(ValueError, match="nist: no such data set, expected one of digits, mnist"):
        load("nist", tmp_path)


def test_the_list_says_what_is_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FASTFLOW_DATA", str(tmp_path / "elsewhere"))
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in DATA_SETS["cifar10"].official.files:
        (tmp_path / "cifar-10-batches-py" / name).touch()
    assert call("data", "list", "--data-root", tmp_path) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(rows) == {"name", "data", *DATA_SETS}
    assert " 3x32x32  cifar-10-batches-py/ " in rows["cifar10"]
    assert "60,000   10,000  1x28x28  not in mnist/" in rows["mnist"]
    assert "63,872   10,968  1x32x32  not in mnist/ and omniglot/" in rows["mnist-omniglot-small"]
    assert "built in" in rows["pinwheel"]
    assert rows["data"] == f"data root: {tmp_path}"
    monkeypatch.delenv("FASTFLOW_DATA")
    assert call("data", "list") == 0
    assert "data root: none; set FASTFLOW_DATA or give --data-root" in capsys.readouterr().out


def test_check_loads_a_set(capsys):
    assert call("data", "check", "moons") == 0
    assert capsys.readouterr().out == "moons: 1,000 + 500 x 2, 2 classes; built in\n"
    require("data")
    root = os.environ["FASTFLOW_DATA"]
    assert call("data", "check", "mnist", "--data-root", root) == 0
    assert capsys.readouterr().out == (
        "mnist: 60,000 + 10,000 x 1x28x28, 10 classes; 4 of 4 files by checksum, all by structure\n")
    assert call("data", "check", "mnist-omniglot-small", "--data-root", root) == 0
    assert capsys.readouterr().out == ("mnist-omniglot-small: 63,872 + 10,968 x 1x32x32, 10 classes; "
                                       "6 of 6 files by checksum, all by structure\n")


def test_check_says_which_files_had_a_checksum(tmp_path, monkeypatch, capsys):
    (tmp_path / "kmnist").mkdir()
    for prefix, rows in (("train", 4), ("t10k", 2)):
        write_idx(tmp_path / "kmnist" / f"{prefix}-images-idx3-ubyte", np.ones((rows, 28, 28)))
        write_idx(tmp_path / "kmnist" / f"{prefix}-labels-idx1-ubyte", np.arange(rows))
    assert call("data", "check", "kmnist", "--data-root", tmp_path) == 2
    assert "kmnist/train-images-idx3-ubyte: 4 rows, expected the 60000 of kmnist" in capsys.readouterr().err
    monkeypatch.setitem(kmnist.__globals__, "KMNIST", replace(DATA_SETS["kmnist"].official, train=4, test=2))
    assert call("data", "check", "kmnist", "--data-root", tmp_path) == 0
    assert "; 0 of 4 files by checksum, all by structure\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("data",), "fastflow data: the following arguments are required: ACTION"),
        (("data", "check"), "fastflow data check: the following arguments are required: NAME"),
        (("data", "check", "nist"), "nist: no such data set, expected one of digits"),
        (("data", "check", "svhn"), "svhn: no folder given; set data.path"),
        (("data", "check", "svhn", "--data-root", "own"), "own/svhn/train_32x32.mat: no such file; get it from http"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capfd, argv, message):
    monkeypatch.delenv("FASTFLOW_DATA", raising=False)
    assert call(*argv) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def configured(name: str, **settings) -> DataConfig:
    return parse_config(SMALL | {"data": {"name": name} | settings}, "own.yaml").data


def test_a_run_can_have_every_named_set(tmp_path):
    named = set(get_args(DataConfig.model_fields["name"].annotation)) - {"npz", "idx", "table"}
    assert named == set(DATA_SETS)
    for name in [name for name in named if DATA_SETS[name].official.files]:
        with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/(mnist/)?[^/]*: no such file; get it from"):
            load_data(configured(name, path=str(tmp_path)))
    assert load_data(configured("digits")).describe() == digits().describe()


def test_a_run_reads_any_idx_folder(tmp_path):
    for prefix, rows in (("train", 4), ("t10k", 2)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", np.ones((rows, 3, 2)))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", np.arange(rows))
    data = load_data(configured("idx", path=str(tmp_path)))
    assert isinstance(data, ImageData)
    assert (data.shape, data.classes, Path(data.name)) == ((1, 3, 2), 4, tmp_path)
    with pytest.raises(ValueError, match=r"data.path is missing, expected the folder of the four IDX files"):
        configured("idx")
