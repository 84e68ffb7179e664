"""The examples of docs/drop-in.md run as they stand."""

import re
import warnings
from pathlib import Path

import peers  # noqa: F401, imports the libraries without their warnings
import pytest

from fastflow.fusion import swap
from fastflow.fusion.layer import is_fused

TEXT = (Path(__file__).parents[2] / "docs/drop-in.md").read_text()
EXAMPLES = dict(re.findall(r"^## (\w+)\n.*?```python\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE))


def test_there_is_one_for_each_library():
    assert list(EXAMPLES) == list(swap.TESTED)


@pytest.mark.parametrize("library", swap.TESTED)
def test_examples(library):
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(EXAMPLES[library], f"docs/drop-in.md, {library}", "exec"), names)
    model = next(names[each] for each in ("flow", "model", "inn") if each in names)
    assert any(is_fused(each) for each in model.modules())
    assert not [each for each in swap.survey(model) if each.reason]
