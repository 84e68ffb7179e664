"""Where the tests of Triton kernels run: on the CPU in a process that interprets Triton, otherwise on a GPU.

Which of the two is fixed when a kernel is defined. tests/test_triton_interpreter.py starts the interpreting process.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
MARKS = (
    [pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy warns where IEEE arithmetic overflows
    if INTERPRETED else
    [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)  # fmt: skip
