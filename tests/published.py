"""Small files in the place of published ones."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path


def as_published(monkeypatch, loader: Callable, name: str, folder: Path, train: int, test: int) -> None:
    """Lets the loader take the files in `folder`, as they are now, for the published ones."""
    official = loader.__globals__[name]
    files = {file: hashlib.md5(official.find(folder, file).read_bytes()).hexdigest() for file in official.files}
    monkeypatch.setitem(loader.__globals__, name, replace(official, files=files, train=train, test=test))
