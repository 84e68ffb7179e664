"""Where the tests of Triton kernels run: on the CPU in a process that interprets Triton, otherwise on a GPU.

Which of the two is fixed when a kernel is defined. tests/test_triton_interpreter.py starts the interpreting process.
"""

import os

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
MARKS = (
    [pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # NumPy warns where IEEE arithmetic overflows
    if INTERPRETED else
    [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)  # fmt: skip


def erring_division(monkeypatch) -> None:
    """Lets the interpreter's float32 division err by 2 ulp, the limit of a GPU's, up and down in turns."""
    from triton.runtime.interpreter import InterpreterBuilder

    exact = InterpreterBuilder.create_fdiv

    def erring(builder, numerator, denominator):
        quotient = exact(builder, numerator, denominator)
        if quotient.data.dtype == np.float32:
            signs = np.where(np.arange(quotient.data.size) % 2, 1, -1).reshape(quotient.data.shape)
            quotient.data = (quotient.data * (1 + signs * 2.0**-22)).astype(np.float32)
        return quotient

    monkeypatch.setattr(InterpreterBuilder, "create_fdiv", erring)
