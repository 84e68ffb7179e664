"""Launch configurations as data: pure functions of the shape and of the device's number of multiprocessors.

Nothing is tuned while a program runs. Who has tuned beforehand, by `fastflow bench tune`, loads the tiles found there:
`load_table(path)`, or FASTFLOW_LAUNCH_TABLE=path, read once when the kernels are first used.
"""

import os
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from triton import cdiv, next_power_of_2

from . import launch_table

# 128 threads of 8 elements, 4 in float64: two 128-bit accesses an array and thread, one in 16-bit storage.
THREADS = 128


@dataclass(frozen=True)
class Launch:
    """A tile of block_rows x block_features elements, and how many programs share the rows and the features."""

    block_rows: int
    block_features: int
    num_warps: int
    row_programs: int
    feature_programs: int


@lru_cache(maxsize=4096)
def row_reduction(rows: int, features: int, itemsize: int, multiprocessors: int) -> Launch:
    """For a kernel that reduces every row over its features.

    A program owns whole rows and loops over their features where the rows keep every multiprocessor busy; otherwise
    `feature_programs` programs share a row, and their partial results are summed afterwards.
    """
    block_rows, block_features, num_warps = _tile("row_reduction", rows, features, itemsize, multiprocessors)
    row_programs = cdiv(rows, block_rows)
    feature_programs = 1
    if rows < multiprocessors:
        feature_programs = min(cdiv(features, block_features), cdiv(2 * multiprocessors, row_programs))
    return Launch(block_rows, block_features, num_warps, row_programs, feature_programs)


@lru_cache(maxsize=4096)
def column_reduction(rows: int, features: int, itemsize: int, multiprocessors: int, reduces: bool) -> Launch:
    """For an elementwise kernel which, if it `reduces`, also reduces every feature over the rows.

    Then a program loops over rows with a stride of `row_programs`, few enough that the partial results stay small.
    """
    block_rows, block_features, num_warps = _tile("column_reduction", rows, features, itemsize, multiprocessors)
    row_programs, feature_programs = cdiv(rows, block_rows), cdiv(features, block_features)
    if reduces:
        row_programs = min(row_programs, cdiv(8 * multiprocessors, feature_programs))
    return Launch(block_rows, block_features, num_warps, row_programs, feature_programs)


@dataclass(frozen=True)
class PixelTiles:
    """A tile of block_channels x block_pixels elements, and how many programs share the pixels."""

    block_channels: int
    block_pixels: int
    num_warps: int
    programs: int


@lru_cache(maxsize=4096)
def pixel_tiles(pixels: int, channels: int, itemsize: int, multiprocessors: int, reduces: bool) -> PixelTiles:
    """For a kernel that multiplies all channels of some pixels, at most 64, by a matrix.

    A thread holds 16 elements, 8 with 64 channels and in float64: squares of results, which share their operands. If it
    `reduces`, it also sums a channels x channels matrix over the pixels, 16 of its elements a thread with 64 channels,
    and holds 4 elements of a tile. A program then loops over pixels, and as many programs as a multiprocessor holds
    at once, of 16 warps at 128 registers a thread, keep the partial results few.
    """
    block_channels = next_power_of_2(channels)
    double = itemsize == 8
    if reduces:
        num_warps = max(1, block_channels // 8)
        block_pixels = max(16, (64 if double else 128) * num_warps // block_channels)
    else:
        block_pixels = min(256, (1024 if double else 2048) // block_channels)
        num_warps = 8 if block_channels == 64 else min(4, block_channels * block_pixels // 128)
    while block_pixels > 16 and cdiv(pixels, block_pixels) < multiprocessors:
        block_pixels //= 2
    programs = cdiv(pixels, block_pixels)
    if reduces:
        programs = min(programs, multiprocessors * min(32, 128 // block_channels))
    return PixelTiles(block_channels, block_pixels, num_warps, programs)


_tuned: dict[launch_table.Key, launch_table.Tile] = {}


def load_table(path: str | os.PathLike) -> None:
    """From now on, tiles of a file that `fastflow bench tune` wrote, for the shapes it has; the heuristic's for others.

    Replaces what was loaded before, in all threads. Raises ValueError for the table of another device or Triton or for
    no table, OSError for a file that cannot be read.
    """
    use(launch_table.read(path))


def use(tiles: dict[launch_table.Key, launch_table.Tile]) -> dict[launch_table.Key, launch_table.Tile]:
    """Sets the tuned tiles, an empty dict for none; returns those of before."""
    global _tuned
    before, _tuned = _tuned, tiles
    row_reduction.cache_clear()
    column_reduction.cache_clear()
    return before


def _tile(family: str, rows: int, features: int, itemsize: int, multiprocessors: int) -> tuple[int, int, int]:
    """(block_rows, block_features, num_warps): those loaded, or the heuristic's."""
    if _tuned and (tile := _tuned.get(launch_table.key(family, rows, features, itemsize))):
        return tile
    return _heuristic(rows, features, itemsize, multiprocessors)


def _heuristic(rows: int, features: int, itemsize: int, multiprocessors: int) -> tuple[int, int, int]:
    """256 features and as many rows as leave work for every multiprocessor."""
    elements = THREADS * 8 if itemsize < 8 else THREADS * 4
    padded = next_power_of_2(features)
    block_rows = max(1, elements // min(padded, 256))
    while block_rows > 1 and cdiv(rows, block_rows) < multiprocessors:
        block_rows //= 2
    block_features = min(padded, elements // block_rows)
    per_warp = 32 * elements // THREADS
    return block_rows, block_features, max(1, block_rows * block_features // per_warp)


@cache
def multiprocessors(device: torch.device) -> int:
    """The number of multiprocessors.

    4 on the CPU, where Triton interprets, so that small tests take every path; 132, an H100's or H200's, for the meta
    tensors with which a launch is planned without a device.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 4 if device.type == "cpu" else 132


if "FASTFLOW_LAUNCH_TABLE" in os.environ:
    try:
        load_table(os.environ["FASTFLOW_LAUNCH_TABLE"])
    except (ValueError, OSError) as error:  # a program should not fail for want of a tuned tile
        warnings.warn(f"fastflow: FASTFLOW_LAUNCH_TABLE is not used: {error}", stacklevel=2)
