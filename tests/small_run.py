"""The command line called in this process, on a configuration that trains in a second."""

from pathlib import Path

import yaml
from tiny_flow import SMALL

from fastflow import cli

CONFIG = SMALL | {"log_every": 2, "evaluate_every": 2, "checkpoint_every": 2}
WITHOUT_CLASSES = ("data.labels=0", "model.head={kind: normal}", "loss={}")


def call(*argv) -> int:
    try:
        return cli.main([str(part) for part in argv])
    except SystemExit as stop:
        return stop.code


def snapshot(folder: Path) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def train_small(folder: Path) -> Path:
    """Leaves small.yaml and the finished run `run` of it, two seeds, in `folder`."""
    (folder / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    assert call("train", folder / "small.yaml", "--set", "seeds=2", "--no-figures", "--out", folder / "run") == 0
    return folder
