"""The C++ kernels where their own structure shows: several tiles an axis, threads, lanes of rows, instruction sets."""

import os
import subprocess
import sys

import pytest
import torch
from coupling_cases import (
    DTYPES,
    MAPS,
    SPLITS,
    bounds,
    eager,
    gradients,
    log_det_terms,
    make_inputs,
    values,
)
from oracles import LAYOUTS, assert_three_way, relayout

from fastflow import _library
from fastflow.ops import affine_coupling

# Several registers of rows, tiles beyond one buffer (512 elements) each way, ragged tails, lanes that are rows.
SHAPES = {
    "long rows": (5, 3 * 512 + 37),
    "many rows": (67, 70),
    "lanes are rows": (3 * 512 + 5, 7),
    "images": (4, 6, 23, 29),
    "short runs": (50, 4, 3, 5),
}
GRAIN = 32768  # elements that one thread keeps to itself, as csrc/cpu/affine_coupling.cpp says
every_map = pytest.mark.parametrize("name", MAPS)
both_ways = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


@pytest.fixture(autouse=True)
def native():
    if _library.load() is None:
        pytest.skip("the native library is not built here")


def relaid(inputs: dict, first: int) -> dict:
    """The same values, each tensor in another layout."""
    laid = dict(inputs)
    for number, name in enumerate(("x", "scale", "shift"), first):
        if laid[name] is not None:
            laid[name] = relayout(laid[name], LAYOUTS[number % len(LAYOUTS)])
    return laid


def everything(function, inputs: dict, weights: tuple, inverse: bool) -> dict:
    """Outputs by name, gradients by grad_name."""
    grads = gradients(function, inputs, weights, inverse)
    return values(function, inputs, inverse) | {f"grad_{name}": grad for name, grad in grads.items()}


def gain_terms(inputs: dict, grad_scale: torch.Tensor) -> torch.Tensor:
    """For each gain the sum of |grad log c tanh(s)| over rows and space, from the gradient of s, in float64."""
    s = inputs["scale"].double()
    gain = inputs["scale_map"].gain.double().view(-1, *[1] * (s.dim() - 2))
    return (grad_scale * torch.tanh(s) * torch.cosh(s) ** 2 / gain).abs().sum([0, *range(2, s.dim())])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both_ways
@every_map
def test_many_tiles(name, inverse, dtype):
    for number, shape in enumerate(SHAPES.values()):
        inputs = make_inputs(shape, name, shift_first=number % 2 == 0, split=SPLITS[number % 4], dtype=dtype)
        weights = (torch.randn(shape).to(dtype), torch.randn(shape[0]))
        storage, single, truth = bounds(lambda i, w=weights: everything(eager, i, w, inverse), inputs)
        terms = {"log_det": log_det_terms(inputs)}
        if "grad_gain" in truth:
            terms["grad_gain"] = gain_terms(inputs, truth["grad_scale"])
        for key, value in everything(affine_coupling, relaid(inputs, number), weights, inverse).items():
            plain = single if key in ("log_det", "grad_log_det", "grad_gain") else storage
            assert_three_way(value, plain[key], truth[key], name=f"{key} of {shape}", terms=terms.get(key))


@both_ways
@pytest.mark.parametrize("name", ["sigmoid", "tanh_gain", "softplus"])
@pytest.mark.parametrize("shape", [(70, 1200), (50_001, 9), (9, 4, 70, 71)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(shape, name, inverse):
    inputs = make_inputs(shape, name, split="second", dtype=torch.float32)
    assert inputs["shift"].numel() > GRAIN
    weights = (torch.randn(shape), torch.randn(shape[0]))

    def compute(threads: int) -> dict:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return everything(affine_coupling, inputs, weights, inverse)
        finally:
            torch.set_num_threads(before)

    alone = compute(1)
    for threads in (2, 3, 5):
        for key, value in compute(threads).items():
            assert torch.equal(value, alone[key]), f"{key} with {threads} threads"


@both_ways
@every_map
def test_rows_do_not_depend_on_their_batch(name, inverse):
    inputs = make_inputs((41, 6, 5, 7), name, split="odd", dtype=torch.float32)
    whole = values(affine_coupling, inputs, inverse)
    for rows in (slice(0, 1), slice(7, 30), slice(40, 41)):
        part = {key: value[rows] if key in ("x", "scale", "shift", "log_det") and value is not None else value
                for key, value in inputs.items()}
        for key, value in values(affine_coupling, part, inverse).items():
            assert torch.equal(value, whole[key][rows]), key


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@every_map
def test_what_is_not_finite_stays_where_eager_has_it(name, value):
    for where in ("x", "scale", "shift"):
        inputs = make_inputs((20, 40), name, dtype=torch.float32)
        if inputs[where] is None:
            continue
        inputs[where][3::5, 7] = value
        plain = values(eager, inputs, False)
        for key, got in values(affine_coupling, inputs, False).items():
            touched = ~plain[key].isfinite()
            assert torch.equal(got.isnan(), plain[key].isnan()), f"{key}: NaN for {where}"
            assert torch.equal(got[touched].nan_to_num(), plain[key][touched].nan_to_num()), f"{key} for {where}"


def test_a_masked_element_never_reaches_log_det():
    inputs = make_inputs((20, 3, 7, 9), "exp", split="mask", dtype=torch.float32)
    for where in ("scale", "shift"):
        inputs[where] = torch.where(inputs["mask"], torch.inf, inputs[where])
    z, log_det = affine_coupling(**inputs)
    assert log_det.isfinite().all()
    assert torch.equal(z[:, inputs["mask"]], inputs["x"][:, inputs["mask"]])


@pytest.mark.parametrize("level", ["avx2", "baseline"])
def test_other_instruction_sets(level):
    """The mode is fixed when the library is loaded: another process runs this file at that level."""
    if _library.instruction_set() == level or os.environ.get("FASTFLOW_CPU_ISA"):
        pytest.skip(f"this process is not at the CPU's best level, or that is {level}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__,
               "-k", "many_tiles or finite or masked"]
    done = subprocess.run(command, env={**os.environ, "FASTFLOW_CPU_ISA": level}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
