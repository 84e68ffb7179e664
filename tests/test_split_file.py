"""Splits as files: the same rows in the same order, and only for the data they were made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_flow import SMALL

from fastflow.data import Split, digits, moons, read_split, split_rows, write_split
from fastflow.training.build import split
from fastflow.training.config_file import parse_config


def same(one: Split, other: Split) -> bool:
    names = ("labelled", "unlabelled", "monitor")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_a_split_comes_back(tmp_path):
    for data, hold_out in ((digits(), True), (digits(), False), (moons(), True)):
        path = tmp_path / f"{data.name}-{hold_out}.npz"
        chosen = split_rows(data.train_labels.numpy(), data.classes, 20, seed=1, monitor=30, hold_out=hold_out)
        write_split(path, chosen, data)
        assert same(read_split(path, data), chosen)
        with pytest.raises(FileExistsError):
            write_split(path, chosen, data)
    with pytest.raises(ValueError, match=r"own.txt: expected a name that ends in .npz"):
        write_split(tmp_path / "own.txt", chosen, data)
    with pytest.raises(FileNotFoundError):
        read_split(tmp_path / "absent.npz", data)


def test_a_split_is_of_one_data_set(tmp_path):
    data, path = moons(), tmp_path / "own.npz"
    write_split(path, split_rows(data.train_labels.numpy(), 2, 10, seed=0), data)
    flipped, unknown, swapped = data.train_labels.clone(), data.train_labels.clone(), 1 - data.train_labels
    flipped[2] = 1  # it was 0
    unknown[2] = -1
    others = {
        "is a split of moons, expected one of suns": replace(data, name="suns"),
        "is a split of 1000 training rows, expected 400 as moons has": moons(train=400),
        r"rows with \[500, 500\] labels of each class, expected \[499, 501\]": replace(data, train_labels=flipped),
        r"rows with \[500, 500\] labels of each class, expected \[499, 500\]": replace(data, train_labels=unknown),
        "is a split of moons with its training rows in another order": replace(data, train_labels=swapped),
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match=f"own.npz: .*{message}"):
            read_split(path, other)


def test_a_set_of_ones_own_may_move_to_another_folder(tmp_path):
    data = replace(moons(), name="here/own.csv")
    chosen = split_rows(data.train_labels.numpy(), 2, 10, seed=0)
    write_split(tmp_path / "own.npz", chosen, data)
    assert same(read_split(tmp_path / "own.npz", replace(data, name="/there/own.csv")), chosen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labelled": np.array([0, 0])}, "labelled are not int64 rows of 1000, each once"),
        ({"labelled": np.array([0, 1000])}, "labelled are not int64 rows of 1000"),
        ({"unlabelled": np.array([-1])}, "unlabelled are not int64 rows"),
        ({"monitor": np.array([0.5])}, "monitor are not int64 rows"),
        ({"monitor": np.array([0])}, "labelled and monitor share a row"),
        ({"unlabelled": np.array([1])}, "labelled and unlabelled share a row"),
    ],
)
def test_rows_of_a_file_are_checked(tmp_path, changes, message):
    data, path = moons(), tmp_path / "own.npz"
    write_split(path, Split(np.array([0, 1]), np.array([2, 3]), np.array([4])), data)
    arrays = dict(np.load(path))
    np.savez(path, **arrays | changes)
    with pytest.raises(ValueError, match=f"own.npz: {message}"):
        read_split(path, data)
    np.savez(path, **{name: array for name, array in arrays.items() if name != "monitor"})
    with pytest.raises(ValueError, match=r"own.npz: no array 'monitor', expected a file of write_split"):
        read_split(path, data)


def test_labelled_and_monitored_rows_have_a_label(tmp_path):
    data = moons()
    hidden = data.train_labels.clone()
    hidden[0] = -1
    data = replace(data, train_labels=hidden)
    write_split(tmp_path / "own.npz", Split(np.array([0, 1]), np.array([2, 3]), np.array([4])), data)
    with pytest.raises(ValueError, match=r"own.npz: labelled has a row without a known label"):
        read_split(tmp_path / "own.npz", data)


def test_a_run_takes_its_split_from_a_file(tmp_path):
    data, path = digits(), tmp_path / "own.npz"
    chosen = split_rows(data.train_labels.numpy(), 10, 40, seed=7, monitor=25, hold_out=False)
    write_split(path, chosen, data)

    def configured(**settings):
        said = {"split": str(path), "labels": 40, "monitor": 25, "hold_out": False}
        return parse_config(SMALL | {"data": {"name": "digits"} | said | settings}, "own.yaml").data

    for seed in (0, 1):
        assert same(split(data, configured(), seed), chosen)
    for key, value, held in (("labels", 39, 40), ("monitor", 0, 25), ("hold_out", True, False)):
        with pytest.raises(ValueError, match=f"data.{key} is {value}, expected {held} as in .*own.npz"):
            split(data, configured(**{key: value}), 0)
    assert not torch.equal(torch.from_numpy(split(data, configured(split=None), 0).labelled),
                           torch.from_numpy(chosen.labelled))
