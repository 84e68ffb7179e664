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
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import triton

from fastflow.bench.cases import SCALE_MAPS
from fastflow.bench.machine_code import Launch, Resources, launches, resources
from fastflow.kernels import affine_coupling_backward_cuda, affine_coupling_cuda, logit_backward_cuda, logit_cuda
from fastflow.ops.scale_map import KINDS

TABLE = Path(__file__).parents[2] / "benchmarks" / "resources.md"
CAPABILITIES = (80, 90)
# 5 programs of 128 threads and 96 registers fit a multiprocessor, each with 12 KB of loads under way: twice what 4.3
# TB/s over 132 multiprocessors needs at 700 ns. The gain's gradient, which loops, and float64 hold more values.
REGISTERS, REGISTERS_GAIN, REGISTERS_DOUBLE = 96, 128, 168
SHARED_BYTES = 4096
NARROW = 3  # accesses below 128 bits: two rows' log_det and a gain or mask; one narrow main array would make four


@dataclass(frozen=True)
class KernelCase:
    """One launch of affine_coupling on x of `shape`.

    `variant` is a scale map of the benchmark, or "sigmoid eps=0" or "tanh gain". `parameters` is the dtype of scale and
    shift where it is not x's. The halves of a packed tensor [B, 2 n_active, ...] are scale and shift.
    """

    kernel: str
    variant: str
    dtype: str = "float32"
    shape: tuple[int, ...] = (65536, 784)
    layout: str = "halves"
    parameters: str | None = None
    shift_first: bool = False
    from_input: bool = False

    @property
    def registers(self) -> int:
        if self.dtype == "float64":
            return REGISTERS_DOUBLE
        return REGISTERS_GAIN if self.kernel == "backward" and self.variant == "tanh gain" else REGISTERS

    @property
    def form(self) -> str:
        """The variant and what else tells the kernel apart."""
        return self.variant + ", shift first" * self.shift_first + ", from input" * self.from_input

    @property
    def wide(self) -> bool:
        """Whether the layout lets every main array move 128 bits at a time."""
        return self.layout != "strided"

    @property
    def reads(self) -> tuple[str, ...]:
        """The main arrays that the kernel reads."""
        if self.kernel != "backward":
            return "x_ptr", "scale_ptr", "shift_ptr"
        return "grad_z_ptr", "saved_ptr", "scale_ptr", *(["shift_ptr"] if self.shift_first == self.from_input else [])

    @property
    def writes(self) -> tuple[str, ...]:
        return ("grad_x_ptr", "grad_scale_ptr", "grad_shift_ptr") if self.kernel == "backward" else ("z_ptr",)

    def call(self) -> None:
        """Calls the launcher on meta tensors."""
        dtype, parameter_dtype = (getattr(torch, name) for name in (self.dtype, self.parameters or self.dtype))
        reduced = torch.float64 if dtype == torch.float64 else torch.float32
        rows, channels, *space = self.shape
        everything = self.layout in ("mask", "all")
        active = channels if everything else channels // 2
        start, step = {"mask": (0, 1), "all": (0, 1), "interleaved": (1, 2)}.get(self.layout, (channels - active, 1))

        def empty(*shape, dtype):
            tensor = torch.empty(shape, dtype=dtype, device="meta")
            return tensor.to(memory_format=torch.channels_last) if self.layout == "channels_last" else tensor

        x, packed = empty(*self.shape, dtype=dtype), empty(rows, 2 * active, *space, dtype=parameter_dtype)
        scale, shift = packed.chunk(2, 1)
        if self.layout == "strided":
            x = torch.empty((*self.shape, 2), dtype=dtype, device="meta")[..., 1]
        name, _, option = self.variant.partition(" ")
        settings = {"bias": 0.0, "eps": 0.0, "clamp": 1.0} | SCALE_MAPS[name]
        if option == "eps=0":
            settings["eps"] = 0.0
        gain = torch.empty(active, dtype=reduced, device="meta") if option == "gain" else None
        mask = torch.empty(self.shape[1:], dtype=torch.bool, device="meta") if self.layout == "mask" else None
        log_det = torch.empty(rows, dtype=reduced, device="meta")
        scale = None if name == "additive" else scale
        rest = (start, step, KINDS.index(name), *settings.values(), self.shift_first, self.kernel == "inverse")
        if self.kernel == "backward":
            affine_coupling_backward_cuda(x, log_det, x, scale, shift, gain, mask, *rest, self.from_input, packing=0)
        else:
            affine_coupling_cuda(x, scale, shift, gain, mask, log_det, *rest)


@dataclass(frozen=True)
class LogitCase(KernelCase):
    """One launch of logit on x of `shape`; `kernel` is "logit forward", "logit inverse" or their backward."""

    variant: str = "alpha=0.05"
    layout: str = "contiguous"

    @property
    def form(self) -> str:
        return self.variant

    @property
    def reads(self) -> tuple[str, ...]:
        return ("grad_z_ptr", "x_ptr") if "backward" in self.kernel else ("x_ptr",)

    @property
    def writes(self) -> tuple[str, ...]:
        return ("grad_x_ptr",) if "backward" in self.kernel else ("z_ptr",)

    def call(self) -> None:
        """Calls the launcher on meta tensors."""
        dtype = getattr(torch, self.dtype)
        x = torch.empty(self.shape, dtype=dtype, device="meta")
        if self.layout == "channels_last":
            x = x.to(memory_format=torch.channels_last)
        log_det = torch.empty(self.shape[0], dtype=torch.promote_types(dtype, torch.float32), device="meta")
        inverse = "inverse" in self.kernel
        if "backward" in self.kernel:
            logit_backward_cuda(x, log_det, x, 0.05, inverse)
        else:
            logit_cuda(x, log_det, 0.05, inverse)


_ALL_MAPS = (*SCALE_MAPS, "sigmoid eps=0", "tanh gain")
_IMAGE = (256, 32, 14, 14)
CASES = (
    *(KernelCase(kernel, variant) for variant in _ALL_MAPS for kernel in ("forward", "inverse", "backward")
      if (kernel, variant) != ("backward", "additive")),  # its gradients are views
    *(KernelCase(kernel, variant, dtype, parameters=parameters)
      for dtype, parameters in (("float64", None), ("bfloat16", None), ("float16", None), ("float32", "bfloat16"))
      for kernel, variant in (("forward", "sigmoid"), ("backward", "sigmoid"), ("backward", "tanh gain"))),
    *(KernelCase(kernel, "sigmoid", dtype, shape, layout)
      for shape, layout in (((65536, 128), "halves"), ((64, 6144), "halves"), (_IMAGE, "halves"), (_IMAGE, "all"))
      for dtype in ("float32", "bfloat16") for kernel in ("forward", "backward")),
    *(KernelCase(kernel, "sigmoid", shape=_IMAGE, layout=layout)
      for layout in ("interleaved", "mask", "channels_last", "strided") for kernel in ("forward", "backward")),
    *(KernelCase("backward", "clamp_tanh", shift_first=shift_first, from_input=from_input)
      for shift_first, from_input in ((False, True), (True, False), (True, True))),
    *(LogitCase(f"logit {kernel}", dtype=dtype) for kernel in ("forward", "inverse", "backward", "inverse backward")
      for dtype in ("float32", "float64", "bfloat16")),
    *(LogitCase(f"logit {kernel}", shape=_IMAGE, layout="channels_last") for kernel in ("forward", "backward")),
)


def violations(case: KernelCase, launch: Launch, found: Resources) -> list[str]:
    """What is wrong with the machine code of a case; empty if nothing is."""
    wrong = []
    for name, value, limit in (("registers", found.registers, case.registers), ("stack", found.stack, 0),
                               ("local memory", found.local, 0), ("spills", found.spills, 0),
                               ("shared memory", found.shared, SHARED_BYTES)):
        if value > limit:
            wrong.append(f"{name} {value}, expected at most {limit}")
    if case.wide:
        for name, widths, arrays in (("loads", found.loads, case.reads), ("stores", found.stores, case.writes)):
            expected = _bytes_a_thread(launch, arrays) / 16
            if widths[128] < expected or widths.total() - widths[128] > NARROW:
                wrong.append(f"{name} {_text(widths)}, expected at least {expected:g} x 128, at most {NARROW} narrower")
    if case.dtype != "float64" and found.double_arithmetic:
        wrong.append(f"{found.double_arithmetic} float64 instructions, expected none for {case.dtype}")
    if case.variant != "additive" and not found.fused_multiply_adds:
        wrong.append("no fused multiply-add, expected some")
    return wrong


def _bytes_a_thread(launch: Launch, names: tuple[str, ...]) -> float:
    elements = launch.arguments["BLOCK_ROWS"] * launch.arguments["BLOCK_FEATURES"] / (32 * launch.options["num_warps"])
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
        tile = f"{launch.arguments['BLOCK_ROWS']}x{launch.arguments['BLOCK_FEATURES']}, {launch.options['num_warps']}"
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

dtype: of x, + of scale and shift where it differs. tile: rows x features, warps. loads, stores: instructions on global
memory x bits a thread moves; the narrow ones are row sums, log_det gradients, gains and masks. shared: bytes a program.

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
