"""bf16 autocast costs log_det what the conditioners' rounding costs, and no more."""

import pytest
import torch
from autocast_log_det import BOUND, DEPTHS, errors, rms

import fastflow


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_coupling_adds_nothing_to_the_conditioners_error(backend, depth):
    if backend == "cpu" and not torch._C._dispatch_has_kernel_for_dispatch_key("fastflow::affine_coupling", "CPU"):
        pytest.skip("the native library is not built")
    with fastflow.backend(backend):
        found = {name: rms(error) for name, error in errors(depth).items()}
    assert found["fastflow"] <= BOUND * found["float32"]
    assert found["bf16"] > BOUND * found["float32"]  # arithmetic in 16 bits would not pass
