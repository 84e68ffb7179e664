"""The machine code of the native library's CUDA kernels, read with the tools that come with Triton."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from needs import require

import fastflow
from fastflow import _library

LIBRARY = Path(fastflow.__file__).resolve().parent / "_C.abi3.so"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")


@dataclass(frozen=True)
class Kernel:
    architecture: str
    name: str
    registers: int
    stack: int
    shared: int
    local: int


def cuobjdump(*options: str) -> str:
    require("nvcc")
    require("triton")
    import triton

    assert _library.build_info()["cuda"], "the library was built without nvcc: make native"
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, *options, LIBRARY], capture_output=True, text=True, check=True).stdout


def kernels(pattern: str) -> list[Kernel]:
    """Those whose name has it."""
    found, architecture = [], ""
    usage = cuobjdump("--dump-resource-usage")
    usage = subprocess.run(["c++filt"], input=usage, capture_output=True, text=True, check=True).stdout
    line = re.compile(r"arch = (\w+)|Function (.+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
    for match in line.finditer(usage):
        if match[1]:
            architecture = match[1]
        elif re.search(pattern, match[2]):
            found.append(Kernel(architecture, match[2], *map(int, match.groups()[2:])))
    return found


def instructions(architecture: str, pattern: str) -> dict[str, list[str]]:
    """{kernel: names of its instructions} for the kernels whose name has the pattern."""
    found = {}
    for part in cuobjdump("-sass", "-arch", architecture).split("Function : ")[1:]:
        name = part.split(maxsplit=1)[0]
        if re.search(pattern, name):
            found[name] = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", part, re.MULTILINE)
    return found
