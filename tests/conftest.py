"""Fixtures for every test: poisoned memory and a fixed seed."""

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fresh allocations hold NaN, so that an element which no kernel wrote fails the test that reads it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
