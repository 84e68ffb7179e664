"""The tests of this folder need the peer libraries, whose own calls may warn."""

import importlib.util
from pathlib import Path

import pytest
from needs import require

HERE = Path(__file__).parent
_LIBRARIES = ("nflows", "normflows", "FrEIA", "zuko")
collect_ignore_glob = [] if all(importlib.util.find_spec(each) for each in _LIBRARIES) else ["test_*"]


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            for library in _LIBRARIES:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:::{library}"))
