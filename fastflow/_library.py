"""The one native library: where it is, whether it loaded, what it was built from."""

import ctypes
import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

BUILD_COMMAND = "pip install --no-build-isolation --no-deps -e .  (in the source folder; a wheel: without -e)"
MISSING = "there is no native library (fastflow/_C.abi3.so)"
REMEDY = f"install a C++17 compiler such as g++ 11 or later, then: {BUILD_COMMAND}"

_PATH = Path(__file__).parent / "_C.abi3.so"


@cache
def load() -> ctypes.CDLL | None:
    """Loads the library, once, which registers its kernels; without one, warns and returns None.

    Raises ImportError if the library is there and does not load.
    """
    if not _PATH.exists():
        warnings.warn(f"fastflow: {MISSING}; every op is computed by its PyTorch reference, slower. To change that, "
                      f"{REMEDY}", stacklevel=2)
        return None
    try:
        return ctypes.CDLL(str(_PATH))  # needs torch's libraries, which `import torch` has loaded
    except OSError as error:
        raise ImportError(f"fastflow: the native library does not load: {error}. Build it again for the installed "
                          f"torch {torch.__version__}: {BUILD_COMMAND}") from error


def build_info() -> dict:
    """`compiler`, `cuda` (nvcc's version or ""), `cuda_architectures`, and `sources`: {path: sha256} of csrc/."""
    library = load()
    return json.loads(_text(library, "fastflow_build_info")) if library is not None else {}


def instruction_set() -> str:
    """The x86-64 level that the C++ kernels run at: baseline, avx2 or avx512."""
    library = load()
    return _text(library, "fastflow_instruction_set") if library is not None else ""


@cache
def all_finite() -> Callable[[int, int, int], bool] | None:
    """Whether so many contiguous numbers at an address, of so many bytes each, are finite; None without a library."""
    library = load()
    if library is None:
        return None
    function = library.fastflow_all_finite
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64), ctypes.c_bool
    return function


def _text(library: ctypes.CDLL, name: str) -> str:
    function = library[name]
    function.restype = ctypes.c_char_p
    return function().decode()
