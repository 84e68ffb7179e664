"""Checkpoints: a folder of safetensors and JSON, whole or absent, whatever moment the process dies at.

    model.safetensors     weights of the model
    average.safetensors   their moving average, where there is one
    trainer.safetensors   optimiser state and running sums
    state.json            step, seed, configuration, versions, data split, position in metrics.jsonl
    SHA256SUMS            `sha256sum -c SHA256SUMS` verifies the folder
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

SUMS = "SHA256SUMS"
STATE = "state.json"
FINAL = "final"
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Checkpoint:
    """`state` is the content of state.json; `tensors` maps "model", "average", "trainer" to name -> tensor."""

    state: dict
    tensors: dict[str, dict[str, Tensor]]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `folder`, which must not exist, in one visible instant: all of it is on disk before it gets its name."""
    files = {f"{name}.safetensors": safetensors.torch.save(_plain(part)) for name, part in checkpoint.tensors.items()}
    files[STATE] = json.dumps(checkpoint.state, indent=1, allow_nan=False).encode()
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    files[SUMS] = sums.encode()
    partial = folder.with_name(_PARTIAL + folder.name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        _write(partial / name, content)
    _sync_folder(partial)
    os.rename(partial, folder)
    _sync_folder(folder.parent)


def load_checkpoint(folder: Path, device: str = "cpu") -> Checkpoint:
    """Reads and verifies a checkpoint. Raises FileNotFoundError, or ValueError naming the damaged file."""
    state = load_state(folder)
    parts = [path.stem for path in sorted(folder.glob("*.safetensors"))]
    tensors = {part: safetensors.torch.load_file(folder / f"{part}.safetensors", device=device) for part in parts}
    return Checkpoint(state, tensors)


def load_state(folder: Path) -> dict:
    """The content of state.json, after every file of the folder was verified against SHA256SUMS."""
    if not (folder / SUMS).is_file():
        raise FileNotFoundError(f"{folder}: not a checkpoint (no {SUMS} inside)")
    listed = [line.split("  ", 1) for line in (folder / SUMS).read_text(errors="replace").splitlines()]
    names = {entry[-1] for entry in listed}
    if not {STATE, "model.safetensors"} <= names:
        raise ValueError(f"{folder / SUMS}: damaged checkpoint (files missing from the list); {_remedy(folder)}")
    for digest, name in listed:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}: damaged checkpoint (the file is missing); {_remedy(folder)}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise ValueError(f"{path}: damaged checkpoint (sha256 differs from {SUMS}); {_remedy(folder)}")
    return json.loads((folder / STATE).read_text())


def step_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def latest(root: Path) -> Path | None:
    """The final checkpoint under `root` (the checkpoints of one seed), else the one of the largest step, else None."""
    if (root / FINAL).is_dir():
        return root / FINAL
    return max(root.glob("step-*"), default=None)


def prune(root: Path, keep: int) -> None:
    """Deletes all but the `keep` latest step checkpoints, and what a killed process left half written."""
    for folder in sorted(root.glob("step-*"))[:-keep]:
        os.rename(folder, folder.with_name(_PARTIAL + folder.name))
    for folder in root.glob(f"{_PARTIAL}*"):
        shutil.rmtree(folder)


def replace_durably(path: Path, content: bytes) -> None:
    """Writes a file that a reader finds old or new, never half."""
    partial = path.with_name(f"{_PARTIAL}{path.name}")
    _write(partial, content)
    os.replace(partial, path)
    _sync_folder(path.parent)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remedy(folder: Path) -> str:
    return f"delete {folder} to go on from the one before it"


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors stores neither views nor shared memory."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
