"""The vector functions of the C++ kernels against 80-bit floating point, and their 16-bit storage against PyTorch's."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import require

from fastflow import _library

ROOT = Path(__file__).parent.parent
LEVELS = {  # as in CMakeLists.txt
    "baseline": [],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512", "-Wno-maybe-uninitialized", "-Wno-uninitialized"],
}
FLOATS = (np.float32, np.float64)

# Largest error in ulp: with a fused multiply-add, and without.
ULPS = {"exp": (1, 1.3), "exp_of_minus_absolute": (1, 1.3), "log": (1, 1), "log1p": (1.4, 1.4), "expm1": (1.7, 1.8),
        "log1p_ratio": (1.3, 1.7), "tanh": (2, 2), "atan": (2, 2)}  # fmt: skip
ULPS_OF_FLOAT = ULPS | {"expm1": (1.3, 1.3), "tanh": (2.5, 2.6), "atan": (2, 2.2)}
TRUTH = {
    "exp": np.exp,
    "exp_of_minus_absolute": lambda x: np.exp(-abs(x)),
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "log1p_ratio": lambda x: np.where(x == 0, 1, np.log1p(x) / np.where(x == 0, 1, x)),
    "tanh": np.tanh,
    "atan": np.arctan,
}


@pytest.fixture(scope="module", params=LEVELS)
def level(request):
    if list(LEVELS).index(request.param) > list(LEVELS).index(_library.instruction_set() or "baseline"):
        pytest.skip(f"above the instruction set of this process, {_library.instruction_set()}")
    return request.param


@pytest.fixture(scope="module")
def native(level, tmp_path_factory):
    require("compiler")
    path = tmp_path_factory.mktemp("native") / f"{level}.so"
    csrc = ROOT / "csrc"
    subprocess.run([shutil.which("g++"), "-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "-fno-math-errno",
                    "-fno-trapping-math", *LEVELS[level], f"-DFASTFLOW_ISA={level}", f"-I{csrc}",
                    f"-I{csrc / 'cpu' / 'isa'}", "-shared", "-fPIC", "-o", path,
                    ROOT / "tests" / "native" / "elementary.cpp"], check=True)  # fmt: skip
    return ctypes.CDLL(str(path))


def apply(native, name: str, x: np.ndarray) -> np.ndarray:
    padded = np.concatenate([x, np.ones(-len(x) % 16, x.dtype)])
    out = np.empty_like(padded)
    suffix = {"f": "float", "d": "double"}[x.dtype.char]
    native[f"{name}_{suffix}"](*(ctypes.c_void_p(array.ctypes.data) for array in (padded, out)),
                               ctypes.c_int64(len(padded)))  # fmt: skip
    return out[:len(x)]


def sweep(name: str, dtype: type) -> np.ndarray:
    """Arguments at every scale that the function is for, and densely where it bends."""
    random, count, info = np.random.default_rng(0), 1 << 17, np.finfo(dtype)
    powers = random.uniform(1, 2, count) * 2.0 ** random.integers(info.minexp, 0, count)
    if name == "log":
        x = [1 + powers, random.uniform(0.5, 2, count), 2.0 ** random.uniform(info.minexp, info.maxexp, count)]
    elif name == "log1p":
        x = [powers, random.uniform(0, 4, count), 2.0 ** random.uniform(info.minexp, info.maxexp, count), [0, info.max]]
    elif name == "expm1":
        x = [powers, random.uniform(0, 2, count), random.uniform(0, np.log(info.max) + 1, count), [0]]
    elif name == "log1p_ratio":
        x = [powers / 2, random.uniform(0, 1, count), [0, 1]]
    elif name.startswith("exp"):
        lowest, highest = np.log(info.smallest_subnormal, dtype=dtype) - 1, np.log(info.max) + 1
        x = [powers, -powers, random.uniform(lowest, highest, count), random.uniform(-1, 1, count)]
    else:
        x = [powers, -powers, random.uniform(-3, 3, count), random.uniform(-25, 25, count), 1 / powers]
    return np.concatenate(x).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", ULPS)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_accuracy(native, level, name, dtype):
    x = sweep(name, dtype)
    computed, truth = apply(native, name, x), TRUTH[name](x.astype(np.longdouble))
    rounded = truth.astype(dtype)
    overflow = np.isinf(rounded)
    assert np.array_equal(np.isinf(computed), overflow)
    errors = abs(computed[~overflow] - truth[~overflow]) / np.spacing(abs(rounded[~overflow]))
    worst = errors.argmax()
    bounds = (ULPS_OF_FLOAT if dtype is np.float32 else ULPS)[name]
    assert errors[worst] <= bounds[level == "baseline"], f"{name}({x[~overflow][worst]!r})"


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", ULPS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_special_values(native, name, dtype):
    info = np.finfo(dtype)
    x = [0.0, np.nan, -np.nan]
    if name == "log":
        x = [1, np.inf, np.nan, info.tiny]
    elif name in ("log1p", "expm1"):  # from 0 on
        x += [np.inf, info.smallest_subnormal, info.tiny, info.max]
    elif name != "log1p_ratio":
        x += [-0.0, np.inf, -np.inf, info.smallest_subnormal, -info.smallest_subnormal, info.tiny, info.max, -info.max]
    x = np.array(x, dtype)
    computed, truth = apply(native, name, x), TRUTH[name](x.astype(np.longdouble)).astype(dtype)
    np.testing.assert_array_max_ulp(computed, truth, maxulp=1)
    signed = ~np.isnan(x)
    assert np.array_equal(np.signbit(computed[signed]), np.signbit(truth[signed]))
    assert np.array_equal(computed == 0, truth == 0)


STORAGE = pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16], ids=str)


def widen(native, x: torch.Tensor, stride: int) -> torch.Tensor:
    """x from 16-bit storage whose elements are `stride` apart."""
    return _convert(native, "widen", x.repeat_interleave(stride), torch.empty(len(x)), x.dtype, stride)


def narrow(native, x: torch.Tensor, storage: torch.dtype, stride: int) -> torch.Tensor:
    """x after it was written to storage whose elements are `stride` apart."""
    return _convert(native, "narrow", x, torch.zeros(len(x) * stride, dtype=storage), storage, stride)[::stride]


def _convert(native, way: str, source: torch.Tensor, target: torch.Tensor, storage: torch.dtype, stride: int):
    function = native[f"{way}_{str(storage).removeprefix('torch.')}"]
    count = min(len(source), len(target))
    function(*map(ctypes.c_void_p, (source.data_ptr(), target.data_ptr())), *map(ctypes.c_int64, (count, stride)))
    return target


def assert_same_bits(computed: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(computed.isnan(), expected.isnan())
    integer = {2: torch.int16, 4: torch.int32}[expected.element_size()]
    number = ~expected.isnan()
    assert torch.equal(computed[number].view(integer), expected[number].view(integer))


@STORAGE
@pytest.mark.parametrize("stride", [1, 3])
def test_widening_every_16_bit_number(native, storage, stride):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(storage)
    for x in (every, every[7:44].clone()):
        assert_same_bits(widen(native, x, stride), x.float())


@STORAGE
@pytest.mark.parametrize("stride", [1, 3])
def test_narrowing_rounds_as_pytorch_does(native, storage, stride):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(storage).float()
    halfway = ((every.double() + every.roll(-1).double()) / 2).float()  # a tie; infinite past the largest
    near = [halfway.nextafter(torch.tensor(limit)) for limit in (-torch.inf, torch.inf)]
    anything = torch.randint(-(2**31), 2**31, (2**18 + 5,)).to(torch.int32).view(torch.float32)
    for x in (every, halfway, *near, anything):
        assert_same_bits(narrow(native, x, storage, stride), x.to(storage))
