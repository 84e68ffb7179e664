"""Tuned tiles, which a user may load in place of the heuristic's: the files of `fastflow bench tune`."""

import json
import os
from pathlib import Path

import torch
import triton
from triton import next_power_of_2

FAMILIES = ("row_reduction", "column_reduction")
INTERPRETER = "Triton interpreter"
_NUMBERS = ("itemsize", "features", "rows", "block_rows", "block_features", "num_warps")
_LARGEST_TILE = 2**14

Key = tuple[str, int, int, int]
Tile = tuple[int, int, int]


def key(family: str, rows: int, features: int, itemsize: int) -> Key:
    """(family, itemsize, features, rows), the last two rounded up to a power of two: shapes that share a tile."""
    return family, itemsize, next_power_of_2(features), next_power_of_2(rows)


def device_name() -> str:
    """What a table is for: the current CUDA device's name, or INTERPRETER. Raises ValueError without either."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return INTERPRETER
    if not torch.cuda.is_available():
        raise ValueError("launch table: torch sees no CUDA device, expected the one that the table was made on")
    return torch.cuda.get_device_name()


def read(path: str | os.PathLike) -> dict[Key, Tile]:
    """{key: (block_rows, block_features, num_warps)} of a table for this device and this Triton.

    Raises ValueError naming the file for any other table or no table, OSError for a file that cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text())
        made_on, made_with = content["device"], content["triton"]
        tiles = dict(map(_entry, content["tiles"]))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"launch table: {path} is not a file of `fastflow bench tune`: {error!r}") from None
    for what, found, expected in (("device", made_on, device_name()), ("triton", made_with, triton.__version__)):
        if found != expected:
            raise ValueError(f"launch table: {path} is for {what} {found!r}, expected {expected!r}; tune again here: "
                             "fastflow bench tune")
    return tiles


def _entry(entry: dict) -> tuple[Key, Tile]:
    itemsize, features, rows, *tile = numbers = [entry[name] for name in _NUMBERS]
    sizes = all(type(number) is int and number > 0 and number & (number - 1) == 0 for number in numbers)
    if entry["family"] not in FAMILIES or not sizes or tile[0] * tile[1] > _LARGEST_TILE or tile[2] > 32:
        raise ValueError(f"{entry} is no tile: expected a family of {', '.join(FAMILIES)}, powers of two, at most "
                         f"{_LARGEST_TILE} elements and 32 warps")
    return (entry["family"], itemsize, features, rows), tuple(tile)
