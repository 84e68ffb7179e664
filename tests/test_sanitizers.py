"""`make sanitize` runs this first: the library under test is the sanitized one, and the sanitizers do bite."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastflow import _library

pytestmark = pytest.mark.slow

CALL = "import ctypes, torch; library = ctypes.CDLL({library!r}); x = torch.ones(64); library.{call}"


def test_the_library_under_test_is_sanitized():
    assert _library.build_info()["sanitizers"] == "address,undefined"


@pytest.fixture(scope="module")
def overrun(tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "overrun.so"
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, "-o", path, Path(__file__).parent / "native" / "overrun.cpp"], check=True)
    return str(path)


@pytest.mark.parametrize(("call", "report"), [
    ("read_beyond(ctypes.c_void_p(x.data_ptr()), 64)", "AddressSanitizer: heap-buffer-overflow"),
    ("add_beyond(2**31 - 1)", "signed integer overflow"),
])
def test_a_mistake_ends_the_process(overrun, call, report):
    code = CALL.format(library=overrun, call=call)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode != 0
    assert report in result.stderr
