"""The Triton kernels of act_norm, by the tests of every other backend, and tiles whose edges cut rows and channels."""

import pytest
import torch
from test_act_norm import (  # noqa: F401, collected here to run on this file's backend
    check,
    test_an_output_that_overflowed_and_is_not_used_does_not_count,
    test_backward_from_output_and_from_input,
    test_kernels,
    test_log_det_is_summed_in_float64,
    test_parameters_of_any_dtype,
)
from triton_process import DEVICE, INTERPRETED, MARKS

from fastflow._backend import backend as forced_backend
from fastflow.ops import act_norm

pytestmark = MARKS


@pytest.fixture(autouse=True)
def backend():
    """Every call by the Triton kernels, every new tensor on their device."""
    with torch.device(DEVICE), forced_backend("triton"):
        yield "triton"


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("shape", [(3, 5000), (13 if INTERPRETED else 1601, 600), (5, 3, 20, 30)], ids=str)
def test_many_blocks(shape, inverse):
    check("shift first", torch.randn(shape), inverse)


def test_many_rows_are_summed_by_few_programs():
    check("shift last", torch.randn(300 if INTERPRETED else 70001, 3), False)


@pytest.mark.parametrize("shape", [(0, 4), (2, 3, 0)], ids=str)
def test_empty(shape):
    x, shift, log_scale = (torch.randn(size, requires_grad=True) for size in (shape, shape[1], shape[1]))
    z, log_det = act_norm(x, shift, log_scale)
    assert (z.shape, log_det.shape) == (shape, shape[:1])
    grads = torch.autograd.grad((z.sum() + log_det.sum(),), (x, shift, log_scale))
    assert [grad.shape for grad in grads] == [x.shape, shift.shape, log_scale.shape]
    assert not any(grad.any() for grad in grads)
