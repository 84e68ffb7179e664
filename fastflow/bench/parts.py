"""A long measurement in parts: each is kept in a file as it is done, and the next run goes on with what is missing."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm


class OutOfTime(Exception):
    """The minutes are over; `left` parts of those under way are not done."""

    def __init__(self, left: int) -> None:
        super().__init__(f"{left} parts are left")
        self.left = left


@dataclass(frozen=True)
class Deadline:
    """When to stop, on the clock of time.monotonic."""

    end: float = float("inf")

    @classmethod
    def after(cls, minutes: float | None) -> "Deadline":
        return cls() if minutes is None else cls(time.monotonic() + 60 * minutes)

    @property
    def left(self) -> float | None:
        """Seconds, at least 0; None without an end."""
        return None if self.end == float("inf") else max(0.0, self.end - time.monotonic())

    @property
    def over(self) -> bool:
        return self.left == 0.0


@dataclass(frozen=True)
class Part:
    """`work(deadline)` gives what is kept under `name`; `line(result)` is what is printed of it.

    TimeoutError from `work` says that the deadline cut it short: nothing is kept.
    """

    name: str
    work: Callable[[Deadline], object]
    line: Callable[[object], str]


class Partial:
    """The results of the parts that are done, by name, in one file; `identity` says of what exactly they are. `kept`
    counts those of this process."""

    def __init__(self, path: Path, identity: dict, fresh: bool = False) -> None:
        """Goes on with the file if there is one. Raises ValueError if it is of another identity and not to be `fresh`.

        `identity` is {what: value or {name: value}}, as JSON keeps it.
        """
        self.path, self._identity, self._done, self.kept = path, identity, {}, 0
        if path.exists() and not fresh:
            found = self._load()
            differs = list(_differences(found["identity"], identity))
            if differs:
                few = ", ".join(differs[:4]) + (f" and {len(differs) - 4} more" if len(differs) > 4 else "")
                raise ValueError(f"{path} is of another measurement: {few} changed; --fresh starts anew")
            self._done = found["done"]

    def _load(self) -> dict:
        try:
            content = json.loads(self.path.read_text())
            return {key: dict(content[key]) for key in ("identity", "done")}
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{self.path} is no unfinished record ({error!r}); --fresh starts anew") from None

    def __contains__(self, name: str) -> bool:
        return name in self._done

    def __getitem__(self, name: str) -> object:
        return self._done[name]

    def keep(self, name: str, result: object) -> None:
        """Adds a part and writes the file, whole or not at all."""
        self._done[name] = result
        self.kept += 1
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_text(json.dumps({"identity": self._identity, "done": self._done}))
        fresh.replace(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _differences(one: dict, two: dict) -> Iterator[str]:
    for key in sorted(one.keys() | two.keys()):
        first, second = one.get(key), two.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            yield from (f"{key}: {name}" for name in _differences(first, second))
        elif first != second:
            yield key


def do(parts: list[Part], partial: Partial, deadline: Deadline) -> None:
    """Does, in order, what `partial` lacks. Raises OutOfTime at the deadline, before or inside a part."""
    with tqdm(total=len(parts), unit=" parts", disable=None, smoothing=0) as bar:
        for part in parts:
            if part.name not in partial:
                bar.set_description(part.name[-48:])
                try:
                    if deadline.over:
                        raise TimeoutError
                    result = part.work(deadline)
                except TimeoutError:
                    raise OutOfTime(sum(other.name not in partial for other in parts)) from None
                partial.keep(part.name, result)
                bar.write(part.line(result))
            bar.update()
