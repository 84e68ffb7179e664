"""What a run writes down as it goes: metrics.jsonl and TensorBoard."""

import json
import math
import os
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class Recorder:
    """Appends one JSON object a line to `metrics` and the same scalars to TensorBoard, for one seed, from `step` on.

    A checkpoint holds the `position` reached; resuming cuts the file back to it, so that no line is torn, doubled or
    missing. Raises ValueError if the file is shorter than that.
    """

    def __init__(self, metrics: Path, tensorboard: Path, *, seed: int, step: int = 0, position: int = 0):
        size = metrics.stat().st_size if metrics.exists() else 0
        if size < position:
            raise ValueError(f"{metrics}: {size} bytes, the checkpoint expects at least {position}; was it edited?")
        self._seed = seed
        self._file = metrics.open("ab")
        self._file.truncate(position)
        self._file.seek(position)  # truncating leaves tell() where the file ended
        self._board = SummaryWriter(str(tensorboard), purge_step=step + 1)

    def write(self, step: int, split: str, values: dict) -> None:
        """`split` is "train", "monitor" or "test"; what is a number in `values` also goes to TensorBoard.

        Raises FloatingPointError, and writes nothing, if a number is not finite.
        """
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for name, value in numbers.items():
            require_finite(step, f"{split} {name}", value)
        line = json.dumps({"seed": self._seed, "step": step, "split": split, **values})
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def position(self) -> int:
        """Bytes of metrics.jsonl so far, all on disk."""
        self._board.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self._board.close()


def require_finite(step: int, name: str, value: float) -> None:
    """Raises FloatingPointError with what to do about a training that diverged."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"training diverged: {name} is {value} at step {step}; lower optimizer.lr or set optimizer.clip "
            "(checkpoints hold finite weights only)"
        )


def read_metrics(path: Path, position: int = 0) -> list[dict]:
    """The whole lines of a metrics.jsonl from byte `position` on, for the last of a run under way may be torn.

    Raises ValueError naming the first line that is not a JSON object.
    """
    lines = []
    for number, text in enumerate(path.read_bytes()[position:].split(b"\n")[:-1], 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(line, dict):
            raise ValueError(f"{path}: line {number} is {type(line).__name__}, expected a JSON object")
        lines.append(line)
    return lines
