"""The tests of this folder need the peer libraries, whose own calls may warn."""

from pathlib import Path

import pytest
from needs import require

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path, parent):
    if HERE in module_path.parents:
        require("peers")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            for library in ("nflows", "normflows", "FrEIA", "zuko"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:::{library}"))
            item.add_marker(pytest.mark.filterwarnings("ignore:Using non-full backward hooks"))  # FrEIA's
