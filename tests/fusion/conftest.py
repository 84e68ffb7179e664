"""The tests of this folder need the peer libraries, whose own calls may warn."""

from pathlib import Path

import pytest
from needs import require

from fastflow.fusion import autoregressive

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path, parent):
    if HERE in module_path.parents:
        require("peers")


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:torch.lu is deprecated"))  # normflows' constructors
            for library in ("nflows", "normflows", "FrEIA", "zuko"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:::{library}"))
            item.add_marker(pytest.mark.filterwarnings("ignore:Using non-full backward hooks"))  # FrEIA's


@pytest.fixture
def by_stages(monkeypatch):
    """Autoregressive layers of any size are inverted by stages."""
    monkeypatch.setattr(autoregressive, "FEW_MULTIPLICATIONS", -1)
    monkeypatch.setattr(autoregressive, "MANY_STAGES", 0)
