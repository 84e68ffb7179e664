"""The machine code of a Triton launch, compiled and read without a GPU."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

_TOOLS = Path(nvidia.__file__).parent / "bin"
_POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16",
             torch.bool: "*i1", torch.uint8: "*u8", torch.int64: "*i64"}
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", re.MULTILINE)


@dataclass(frozen=True)
class Launch:
    """What a launcher passed to a Triton kernel: its arguments by name, and the compiler's options."""

    kernel: JITFunction
    arguments: dict
    options: dict


@dataclass(frozen=True)
class Resources:
    """What one kernel takes.

    `loads` and `stores` count instructions on global memory by the bits that a thread moves, `spills` those on local
    memory; `shared` is bytes a program, `stack` and `local` bytes a thread.
    """

    registers: int
    stack: int
    local: int
    shared: int
    spills: int
    loads: Counter
    stores: Counter
    double_arithmetic: int
    fused_multiply_adds: int


def launches(call: Callable) -> list[Launch]:
    """What `call` would launch. Nothing is launched: its tensors can be meta tensors, its results are undefined."""
    recorded = []

    def record(kernel: JITFunction, *args, grid, warmup, **keywords) -> None:
        named = {name: keywords.pop(name) for name in kernel.arg_names if name in keywords}
        recorded.append(Launch(kernel, dict(zip(kernel.arg_names, args, strict=False)) | named, keywords))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return recorded


def resources(launch: Launch, capability: int) -> Resources:
    """What the launch takes on a GPU of this compute capability (80, 90).

    Raises ValueError for a run-time integer that the kernel specialises on its value: it would compile again for each.
    """
    signature, constants, attributes = {}, {}, {}
    for position, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
            if value.data_ptr() % 16 == 0:
                attributes[position,] = [["tt.divisibility", 16]]
        elif parameter.do_not_specialize:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        else:
            raise ValueError(f"{launch.kernel.__name__}: argument {name} is a run-time integer, expected it to be "
                             "constexpr or in do_not_specialize")
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    return _read(compiled.asm["cubin"], compiled.metadata.shared)


def _read(cubin: bytes, shared: int) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (subprocess.run([_TOOLS / tool, *options, file.name], check=True, capture_output=True,
                                      text=True).stdout
                       for tool, options in (("cuobjdump", ["--dump-resource-usage"]), ("nvdisasm", ["-c"])))
    used = {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    opcodes = [opcode.split(".") for opcode in _INSTRUCTION.findall(code)]
    count = Counter(opcode[0] for opcode in opcodes)
    return Resources(
        registers=used["REG"], stack=used["STACK"], local=used["LOCAL"], shared=shared,
        spills=count["LDL"] + count["STL"],
        loads=_widths(opcodes, "LDG"), stores=_widths(opcodes, "STG"),
        double_arithmetic=sum(count[name] for name in ("DADD", "DMUL", "DFMA", "DMMA", "DSETP", "DMNMX")),
        fused_multiply_adds=count["FFMA"] + count["DFMA"] + count["DMMA"],
    )


def _widths(opcodes: list[list[str]], name: str) -> Counter:
    """How many instructions `name` move 8, 16, 32, 64 or 128 bits."""
    bits = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}
    return Counter(next((bits[each] for each in modifiers if each in bits), 32)
                   for opcode, *modifiers in opcodes if opcode == name)
