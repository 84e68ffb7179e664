"""Fixtures for every test: poisoned memory and a fixed seed; and for those of the command line: a finished run."""

import shutil
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items):
    """The interpreter's tests first: they take one of the processes for as long as the rest takes the other."""
    items.sort(key=lambda item: item.path.name != "test_triton_interpreter.py")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh allocations hold NaN, so that an element which no kernel wrote fails the test that reads it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with small.yaml and the finished run `run` of it, two seeds."""
    from small_run import train_small

    return train_small(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def work(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it to spoil, as working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path
