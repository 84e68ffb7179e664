"""`fastflow bench tune`: times a short list of tiles for each Triton kernel and writes the fastest ones as a table."""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import geometric_mean

from tqdm import tqdm

from fastflow import _backend
from fastflow.bench import watching
from fastflow.bench.cases import Case
from fastflow.bench.lists import cuda_cases
from fastflow.bench.providers import prepare
from fastflow.bench.timing import measure

# The direction in which an op's kernel is the family's; the inverse is the forward's kernel again.
_DIRECTIONS = {"forward": "row_reduction", "backward": "column_reduction"}
_TINY = (6, 40)

WORTHWHILE = 1.02

Key = tuple[str, int, int, int]  # as in fastflow.kernels.launch_table
Tile = tuple[int, int, int]


def main(device: str, op: str | None, seconds: float, out: Path) -> None:
    """Tunes on "cuda" or "cpu-interpreter", prints a line a shape, writes the table to `out`. Raises ValueError for an
    op without a Triton kernel."""
    interpreted = device == "cpu-interpreter"
    if interpreted:
        _interpret()
    import triton

    from fastflow.kernels import launch_table

    chosen, speedups = _cases(op, interpreted), defaultdict(lambda: defaultdict(list))
    with _backend.backend("triton"), tqdm(chosen, unit=" cases", disable=None) as bar:
        for case in bar:
            bar.set_description(case.name[-48:])
            key, times = _times(case, "cpu" if interpreted else "cuda", seconds)
            usual = times.pop(None)
            for tile, time in times.items():
                speedups[key][tile].append(usual / time)
    tiles = list(_entries(speedups))
    if interpreted:
        print("interpreted on the CPU: this tries the machinery, its times and tiles mean nothing")
    print(f"{len(speedups)} shapes tried, {len(tiles)} with a tile that is faster than the heuristic's")
    for entry in tiles:
        print("{family} itemsize {itemsize}, up to {rows} x {features}: {block_rows} x {block_features}, {num_warps} "
              "warps, {speedup:.2f} x the heuristic's speed".format(**entry))
    content = {"device": launch_table.device_name(), "triton": triton.__version__,
               "time": datetime.now(UTC).isoformat(timespec="seconds"), "tiles": tiles}
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {out}; to use it: FASTFLOW_LAUNCH_TABLE={out}")


def _interpret() -> None:
    if "fastflow.kernels" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("the kernels are loaded as compiled ones, expected a fresh process to interpret them")
    os.environ["TRITON_INTERPRET"] = "1"
    _backend.state.cache_clear()


def _cases(op: str | None, interpreted: bool) -> list[Case]:
    kernels = {name for name, entry in watching.ops().items() if entry.on_cuda == "triton"}
    cases = [case for case in cuda_cases() if case.op in kernels and case.direction in _DIRECTIONS
             and op in (None, case.op)]
    if not cases:
        known = sorted({case.op for case in cuda_cases()} & kernels)
        raise ValueError(f"op is {op!r}, expected one with a Triton kernel and GPU cases: {', '.join(known)}")
    if interpreted:
        return list(dict.fromkeys(replace(case, shape=_TINY, dtype="float32") for case in cases))
    return cases


def candidates(features: int) -> list[Tile]:
    """(block_rows, block_features, num_warps) worth trying beside the heuristic's: 8 and 16 elements a thread, in tiles
    that are short or as wide as the row."""
    padded = 1 << (features - 1).bit_length()
    return list(dict.fromkeys(
        (max(1, elements // width), width, elements // per_warp) for elements in (1024, 2048, 4096)
        for width in (min(padded, 256), min(padded, 1024)) for per_warp in (256, 512)))


class _Everywhere(dict):
    """A table with one tile for every shape of a family, None for the heuristic's; notes the shapes asked for."""

    def __init__(self, family: str, tile: Tile | None) -> None:
        super().__init__(every=tile)
        self.family, self.tile, self.asked = family, tile, []

    def get(self, key: Key) -> Tile | None:
        if key[0] != self.family:
            return None
        self.asked.append(key)
        return self.tile


def _times(case: Case, device: str, seconds: float) -> tuple[Key, dict[Tile | None, float]]:
    """The key of the case's shape, and {tile: seconds of a call}, None for the heuristic's, all measured in turn."""
    from fastflow.kernels import launch

    family, call = _DIRECTIONS[case.direction], prepare("fastflow", case, device)
    heuristic = _Everywhere(family, None)
    before = launch.use(heuristic)
    try:
        call()
        key = heuristic.asked[0]
        tiles = candidates(key[2])[: 2 if device == "cpu" else None]
        tables = [heuristic, *(_Everywhere(family, tile) for tile in tiles)]
        timings, _ = measure({table.tile: partial(_by, table, call) for table in tables}, seconds * len(tables), device)
    finally:
        launch.use(before)
    return key, {tile: timing.seconds for tile, timing in timings.items()}


def _by(table: _Everywhere, call: Callable) -> None:
    from fastflow.kernels import launch

    launch.use(table)
    call()


def _entries(speedups: dict[Key, dict[Tile, list[float]]]) -> Iterator[dict]:
    """The fastest tile of each shape, over all kernels of the family, where one is faster than the heuristic's."""
    for (family, itemsize, features, rows), by_tile in speedups.items():
        speedup, tile = max((geometric_mean(ratios), tile) for tile, ratios in by_tile.items())
        if speedup >= WORTHWHILE:
            yield {"family": family, "itemsize": itemsize, "features": features, "rows": rows, "block_rows": tile[0],
                   "block_features": tile[1], "num_warps": tile[2], "speedup": round(speedup, 3)}
