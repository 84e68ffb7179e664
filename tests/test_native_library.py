"""The native library from outside: what it asks of the system, what it lets out, and its CUDA code without a device."""

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_code import ARCHITECTURES, cuobjdump, kernels
from needs import require
from torch._subclasses.fake_tensor import FakeTensorMode

import fastflow
from fastflow import _library
from fastflow.ops.invert import invert

ROOT = Path(fastflow.__file__).resolve().parent.parent
LIBRARY = ROOT / "fastflow" / "_C.abi3.so"


def _output(*command: object) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def _built():
    require("compiler")
    assert LIBRARY.exists(), f"{LIBRARY} was not built: make setup"


def _undefined() -> list[tuple[str, str]]:
    """(kind, name) of the undefined symbols that name no version of a system library."""
    lines = _output("nm", "-D", "--undefined-only", LIBRARY).splitlines()
    return [(kind, name) for kind, name in (line.split()[-2:] for line in lines) if "@" not in name]


def test_asks_torch_for_nothing_but_its_c_shim():
    shim = re.compile(r"(aoti_)?torch_\w+|_ITM_\w+|__gmon_start__|__cxa_\w+")
    names = [name for _, name in _undefined()]
    assert any(name.startswith("aoti_torch_") for name in names)
    assert [name for name in names if not shim.fullmatch(name)] == []


def test_cuda_stream_symbol_is_weak():
    require("nvcc")
    kinds = {name: kind for kind, name in _undefined()}
    assert kinds["aoti_torch_get_current_cuda_stream"] == "w"


def test_needs_torch_and_the_system_only_and_has_no_search_path():
    dynamic = _output("readelf", "-d", LIBRARY)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert {"libtorch.so", "libtorch_cpu.so"} <= needed
    assert [name for name in needed if re.search("cuda|python|c10|asan|gomp", name)] == []
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


def test_lets_out_nothing_but_its_three_questions():
    exported = [line.split()[-1] for line in _output("nm", "-D", "--defined-only", LIBRARY).splitlines()
                if line.split()[-2] == "T"]
    assert sorted(name for name in exported if name not in ("_init", "_fini")) == [
        "fastflow_all_finite", "fastflow_build_info", "fastflow_instruction_set"]


def test_holds_no_path_of_the_machine_that_built_it():
    assert str(ROOT).encode() not in LIBRARY.read_bytes()


def test_is_the_library_of_these_sources():
    assert _library.build_info()["sources"].keys() == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}


def test_loads_by_itself_in_a_process_without_the_package():
    code = f"import torch; torch.ops.load_library({str(LIBRARY)!r})"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_code_of_one_instruction_set_cannot_stand_in_for_that_of_another():
    """The linker keeps one copy of a weak function: an AVX-512 one would run on every CPU."""
    objects = sorted((ROOT / "build" / "native").glob("CMakeFiles/isa_*.dir/csrc/cpu/isa/*.o"))
    assert {path.parts[-5] for path in objects} >= {"isa_baseline.dir"}
    for path in objects:
        own = path.parts[-5].removeprefix("isa_").removesuffix(".dir")
        weak = [line.split(maxsplit=2)[2] for line in _output("nm", "-C", "--defined-only", path).splitlines()
                if line.split(maxsplit=2)[1] in "WVu"]
        assert [name for name in weak if f"fastflow::{own}::" not in name] == []


def test_cuda_code_is_there_for_every_architecture():
    usage = cuobjdump("--dump-resource-usage")
    sources = len(list((ROOT / "csrc" / "cuda").glob("*.cu")))
    assert re.findall(r"elf code:\n=+\narch = (\w+)", usage) == [*ARCHITECTURES] * sources
    assert re.findall(r"ptx code:\n=+\narch = (\w+)", usage) == ["sm_100"] * sources


def _blocks_at_once(kernel: str) -> int:
    """How many blocks of 128 threads a multiprocessor is to hold."""
    shape = re.search(r"Shape<.*?(\d+)>", kernel)
    return int(shape[1]) if shape else 3 if re.search("ParameterKernel|GradZKernel", kernel) else 4


def test_cuda_kernels_use_no_stack_and_few_registers():
    """Those of residual_coupling have a test of their own."""
    found = [kernel for kernel in kernels("") if "residual_coupling" not in kernel.name]
    scores = 8  # two dtypes, two shapes of tiles, isotropic or not
    assert len(found) == len(ARCHITECTURES) * (scores + 4 + scores + 14 + 1)  # forward, backward, invert
    for kernel in found:
        assert (kernel.stack, kernel.local) == (0, 0), f"{kernel} spills"
        assert kernel.shared <= 48 * 1024, kernel
        if "invert" in kernel.name:  # one block of 256 threads
            assert kernel.registers <= 64
            continue
        blocks = _blocks_at_once(kernel.name)
        assert blocks * 128 * kernel.registers <= 2**16, f"{kernel}: {blocks} blocks no longer fit"
        assert blocks * kernel.shared <= 160 * 1024, f"{kernel}: {blocks} blocks no longer fit"


@pytest.mark.skipif(shutil.which("g++-11") is None, reason="g++ 11, the oldest that serves, is not installed here")
def test_the_oldest_compiler_takes_the_cpu_kernels():
    torch_headers = Path(torch.__file__).parent / "include"
    for source in (ROOT / "csrc" / "cpu").rglob("*.cpp"):
        done = subprocess.run(["g++-11", "-std=c++17", "-fsyntax-only", "-DTORCH_TARGET_VERSION=0x020b000000000000",
                               "-DFASTFLOW_ISA=baseline", f"-I{ROOT / 'csrc'}", "-isystem", torch_headers, source],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


_GIVEN = [(5, 4), (3, 4), (3, 1), (3,), None, None]


@pytest.mark.parametrize(("name", "given", "expected"), [
    ("gaussian_class_scores", [*_GIVEN, False], [(5,), (5,), (0,)]),
    ("gaussian_class_scores_backward", [*_GIVEN, (5,), (5, 3), (5,), None, None, True, True, False],
     [(5, 4), (3, 4), (3, 1), (3,), (0,)]),
    ("invert", [(4, 4)], [(4, 4), ()])])
def test_cuda_kernel_is_registered_under_the_schema_of_the_op(name, given, expected):
    require("nvcc")
    op = getattr(torch.ops.fastflow_cuda, name).default
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastflow_cuda::{name}", "CUDA")
    own = str(getattr(torch.ops.fastflow, name).default._schema)
    assert str(op._schema) == own.replace("fastflow::", "fastflow_cuda::")
    with FakeTensorMode():
        results = op(*(torch.empty(each) if isinstance(each, tuple) else each for each in given))
    assert [tuple(each.shape) for each in results] == expected


def _on_the_host(name: str, folder: Path) -> ctypes.CDLL:
    """A CUDA kernel's code compiled for the host, from tests/native."""
    require("compiler")
    path = folder / f"{name}.so"
    subprocess.run([shutil.which("g++"), "-std=c++17", "-O2", "-shared", "-fPIC", "-pthread", f"-I{ROOT / 'csrc'}",
                    "-o", path, ROOT / "tests" / "native" / f"{name}.cpp"], check=True)
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("rows", [1, 2, 7, 24, 64])
def test_a_block_of_threads_inverts(tmp_path, rows):
    library = _on_the_host("invert", tmp_path)
    library.invert_by_threads.restype = ctypes.c_double
    matrix = torch.randn(rows, rows, dtype=torch.float64)
    found = matrix.clone()
    log_abs_det = library.invert_by_threads(ctypes.c_void_p(found.data_ptr()), rows, 2, 3)
    inverse, expected = invert(matrix)
    torch.testing.assert_close(found, inverse, rtol=1e-9, atol=1e-9 * float(inverse.abs().max()))
    assert log_abs_det == pytest.approx(float(expected), abs=1e-9)
