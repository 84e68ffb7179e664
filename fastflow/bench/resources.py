"""The gate: every Triton kernel compiled for sm_80 and sm_90 without a GPU, and its machine code held to limits.

    python -m fastflow.bench.resources            check; exit 1 on a violation or if benchmarks/resources.md differs
    python -m fastflow.bench.resources --write    check, and write benchmarks/resources.md

Limits: registers within the budget; no stack, no local memory, no spills; where the layout allows it, all bytes of the
main arrays move by 128-bit accesses; float64 arithmetic for float64 data only; fused multiply-adds are there.
"""

import argparse
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import triton

from fastflow.bench.gate_cases import CASES
from fastflow.bench.kernel_case import KernelCase
from fastflow.bench.machine_code import Launch, Resources, launches, resources

TABLE = Path(__file__).parents[2] / "benchmarks" / "resources.md"
CAPABILITIES = (80, 90)


def violations(case: KernelCase, launch: Launch, found: Resources) -> list[str]:
    """What is wrong with the machine code of a case; empty if nothing is."""
    wrong = []
    for name, value, limit in (("registers", found.registers, case.registers), ("stack", found.stack, 0),
                               ("local memory", found.local, 0), ("spills", found.spills, 0),
                               ("shared memory", found.shared, case.shared)):
        if value > limit:
            wrong.append(f"{name} {value}, expected at most {limit}")
    if case.wide:
        for name, widths, arrays in (("loads", found.loads, case.reads), ("stores", found.stores, case.writes)):
            expected = _bytes_a_thread(case, launch, arrays) / 16
            if widths[128] < expected or widths.total() - widths[128] > case.narrow:
                wrong.append(f"{name} {_text(widths)}, expected at least {expected:g} x 128, "
                             f"at most {case.narrow} narrower")
    if case.dtype != "float64" and found.double_arithmetic:
        wrong.append(f"{found.double_arithmetic} float64 instructions, expected none for {case.dtype}")
    if case.fuses and not found.fused_multiply_adds:
        wrong.append("no fused multiply-add, expected some")
    return wrong


def _bytes_a_thread(case: KernelCase, launch: Launch, names: tuple[str, ...]) -> float:
    elements = case.elements(launch.arguments) / (32 * launch.options["num_warps"])
    tensors = [launch.arguments[name] for name in names]
    return elements * sum(tensor.element_size() for tensor in tensors if tensor is not None)


def _text(widths: Counter) -> str:
    return " + ".join(f"{count} x {bits}" for bits, count in sorted(widths.items(), reverse=True)) or "none"


def measure(case: KernelCase) -> tuple[list[str], list[str]]:
    """The rows of the table for a case, one for each architecture, and its violations."""
    launch, = launches(case.call)
    rows, wrong = [], []
    for capability in CAPABILITIES:
        found = resources(launch, capability)
        tile = f"{case.tile(launch.arguments)}, {launch.options['num_warps']}"
        dtypes = f"{case.dtype} + {case.parameters}" if case.parameters else case.dtype
        shape = "x".join(map(str, case.shape))
        name = (f"sm_{capability}", case.kernel, case.form, dtypes, f"{shape} {case.layout}")
        cells = (*name, tile, found.registers, _text(found.loads), _text(found.stores), found.shared)
        rows.append(f"| {' | '.join(map(str, cells))} |")
        wrong += [f"{' '.join(name)}: {each}" for each in violations(case, launch, found)]
    return rows, wrong


HEADER = f"""# Machine code of the Triton kernels

Compiled by Triton {triton.__version__} without a GPU. `python -m fastflow.bench.resources --write` makes this table,
`make gate` checks it. No kernel has stack, local memory or spills; only float64 data get float64 arithmetic.

dtype: of x, + of scale and shift where it differs; of noise, and of the z of grey levels. tile: rows x features, or of
a mix channels x pixels, warps. loads, stores: instructions on global memory x bits a thread moves; the narrow ones are
row sums, log_det gradients, gains, masks and what else belongs to channels, a mix's matrices, keys of noise and grey
levels. shared: bytes a program.

| | kernel | variant | dtype | x | tile | registers | loads | stores | shared |
|---|---|---|---|---|---|---|---|---|---|
"""


def difference(table: str, committed: str) -> str | None:
    """What to say of a committed table that is not `table`; rows made by another Triton are not comparable."""
    if committed == table:
        return None
    if committed and f"Triton {triton.__version__} " not in committed:
        print(f"{TABLE.name} is of another Triton than {triton.__version__}: the rows were not compared")
        return None
    return f"{TABLE.name} differs from this table: review the change, then run with --write"


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastflow.bench.resources", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(TABLE.parents[1])}")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is 1, expected it unset: interpreted kernels cannot be compiled")
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        measured = list(pool.map(measure, CASES))
    table = HEADER + "".join(f"{row}\n" for rows, _ in measured for row in rows)
    print(table)
    wrong = [each for _, violated in measured for each in violated]
    if options.write:
        TABLE.write_text(table)
    elif different := difference(table, TABLE.read_text() if TABLE.exists() else ""):
        wrong.append(different)
    print(*(wrong or [f"{len(CASES)} launches on {len(CAPABILITIES)} architectures within the limits"]), sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
