"""Run folders: a name of their own, never overwritten, one process at a time, resumed only as they were configured."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fastflow.training.checkpoint import latest, replace_durably
from fastflow.training.config import Config
from fastflow.training.config_file import dump_config, load_config

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
_MAY_CHANGE = ("seeds", "device")  # what a resumed run may be told anew


def new_run(root: Path, name: str) -> Path:
    """Makes `root`/`name`-<UTC time>, a folder that did not exist."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{count}" for count in range(2, 100))):
        try:
            folder = root / f"{name}-{stamp}{suffix}"
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"{root}/{name}-{stamp}: a hundred runs began in one second; name one with --out")


def claim_run(folder: Path) -> Path:
    """Makes `folder` for a new run. Raises FileExistsError if there is anything in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; add --resume to go on, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def newest_run(root: Path, name: str) -> Path:
    """The latest run of the configuration `name`. Raises FileNotFoundError if there is none."""
    runs = [folder for folder in root.glob(f"{name}-[0-9]*") if folder.is_dir()]
    if not runs:
        raise FileNotFoundError(f"{root}/{name}-*: no run to resume; leave --resume out to start one")
    return max(runs, key=lambda folder: folder.name)


def require_run(folder: Path) -> None:
    """Raises FileExistsError if `folder` holds something and no run, for training would write over it."""
    if not (folder / CONFIG).is_file():
        strange = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if strange:
            raise FileExistsError(f"{folder} holds {strange[0]} and no {CONFIG}, expected a run folder or an empty one")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run for this process; the lock dies with it. Raises BlockingIOError if another process holds it."""
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{folder}: another process is training in this folder") from None
        yield


def record_config(folder: Path, config: Config) -> None:
    """Writes config.yaml, or checks that it says the same but for what may change on resuming.

    Raises ValueError naming the first key that differs.
    """
    path = folder / CONFIG
    if path.exists():
        recorded, wanted = flat(load_config(path).model_dump()), flat(config.model_dump())
        for key in recorded.keys() | wanted.keys():
            if recorded.get(key) != wanted.get(key) and key not in _MAY_CHANGE:
                raise ValueError(
                    f"{path}: {key} is {recorded.get(key)!r} in this run, not {wanted.get(key)!r}; "
                    "a run resumes as it began: start another one to change it"
                )
        if wanted["seeds"] < recorded["seeds"]:
            raise ValueError(f"{path}: seeds is {recorded['seeds']} in this run, expected at least as many on resuming")
    replace_durably(path, dump_config(config).encode())


def seed_folder(folder: Path, seed: int) -> Path:
    """Where the checkpoints of one seed are."""
    return folder / "checkpoints" / f"seed-{seed}"


def find_checkpoints(path: Path) -> list[Path]:
    """The checkpoint that `path` is, or the latest of each seed of the run that it is.

    Raises FileNotFoundError where there is neither.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run or checkpoint")
    if (path / "state.json").exists() or (path / "SHA256SUMS").exists():
        return [path]
    seeds = sorted((path / "checkpoints").glob("seed-*"), key=lambda root: int(root.name.removeprefix("seed-")))
    found = [checkpoint for root in seeds if (checkpoint := latest(root))]
    if not found:
        raise FileNotFoundError(f"{path}: neither a checkpoint nor a run that has one")
    return found


def flat(tree: dict, prefix: str = "") -> dict:
    """Nested keys joined by dots."""
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves
