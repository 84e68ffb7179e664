"""What the tests of an op run on: its reference, the fallback that the dispatcher has, and the native library."""

from collections.abc import Callable

import pytest
import torch

from fastflow._backend import backend as forced_backend
from fastflow.ops._define import Op


def cpu_backends(*ops: Op) -> Callable:
    """A fixture `backend` for tests of `ops`, a forward and its backward.

    "reference" by autograd; "fallback", the autograd.Function over the reference; "cpu", the Function over the kernels.
    """

    @pytest.fixture(params=["reference", "fallback", "cpu"])
    def backend(request, monkeypatch):
        if request.param == "fallback":
            for op in ops:
                monkeypatch.setattr(op, "dispatch", op.fallback)
            yield request.param
            return
        name = f"fastflow::{ops[0].name}"
        if request.param == "cpu" and not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"):
            pytest.skip("the native library is not built here")
        with forced_backend(request.param):
            yield request.param

    return backend
