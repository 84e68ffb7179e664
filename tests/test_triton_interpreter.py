"""Runs the tests of every Triton kernel in Triton's interpreter, each file in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from needs import require
from triton_process import INTERPRETED

FILES = sorted(Path(__file__).parent.glob("test_*_triton.py"))


@pytest.mark.skipif(INTERPRETED, reason="this process interprets, the files run by themselves")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_in_the_interpreter(file):
    require("triton")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file],
                         env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                         cwd=file.parents[1], capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    print(run.stdout[-300:])
