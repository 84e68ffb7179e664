"""The CUDA kernels of the Gaussian class scores, on the host (csrc/testing/thread_block.h), against 80-bit truth."""

import ctypes
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gaussian_cases import MIXES, OF_BACKWARD, SCALES, Problem, assert_right, problem
from needs import require
from oracles import LAYOUTS, relayout
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
_STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_ARGUMENTS = ("z", "means", "log_scales", "log_prior", "labels", "weights", "marginal", "scores", "grad_marginal",
              "grad_picked", "grad_scores")
_RESULTS = ("marginal", "picked", "scores", *(f"grad_{name}" for name in OF_BACKWARD))


class _Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("storage", ctypes.c_int32),
                *((name, ctypes.c_int64) for name in ("rows", "columns", "row", "column"))]


def _described(tensor: Tensor | None) -> _Tensor:
    if tensor is None:
        return _Tensor()
    rows, columns = tensor.shape if tensor.dim() == 2 else (len(tensor), 1)
    row, column = tensor.stride() if tensor.dim() == 2 else (tensor.stride(0), 0)
    some = 16  # an empty tensor has no address, and is not absent
    return _Tensor(tensor.data_ptr() or some, _STORAGE.get(tensor.dtype, 0), rows, columns, row, column)


class _Arguments(ctypes.Structure):
    _fields_ = [(name, _Tensor) for name in _ARGUMENTS]


class _Results(ctypes.Structure):
    _fields_ = [(name, _Tensor) for name in _RESULTS]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    require("compiler")
    path = tmp_path_factory.mktemp("native") / "gaussian_class_scores.so"
    source = ROOT / "tests" / "native" / "gaussian_class_scores.cpp"
    subprocess.run([shutil.which("g++"), "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
                    f"-I{ROOT / 'csrc'}", "-o", path, source], check=True)
    return ctypes.CDLL(str(path))


def _forward(library, p: Problem, multiprocessors: int = 1, descending: bool = False, with_scores: bool = True):
    rows, classes = p.z.shape[0], p.means.shape[0]
    results = {name: torch.full(shape, math.nan, dtype=p.means.dtype)
               for name, shape in (("marginal", (rows,)), ("picked", (rows,)), ("scores", (rows, classes)))}
    if not with_scores:
        del results["scores"]
    _call(library, "forward", p.fields(), results, multiprocessors, descending)
    return results


def _backward(library, p: Problem, marginal: Tensor, scores: Tensor | None, wanted: tuple[str, ...] = OF_BACKWARD,
              multiprocessors: int = 1, descending: bool = False, rows_of_a_pass: int = 1024):
    results = {f"grad_{name}": torch.full(getattr(p, name).shape, math.nan, dtype=getattr(p, name).dtype)
               for name in wanted if getattr(p, name) is not None}
    arguments = p.fields() | {"marginal": marginal, "scores": scores}
    _call(library, "backward", arguments, results, multiprocessors, descending, rows_of_a_pass)
    return results


def _call(library, direction, arguments, results, multiprocessors, descending, rows_of_a_pass=0) -> None:
    scalar = "double" if arguments["means"].dtype == torch.float64 else "float"
    described = _Arguments(**{name: _described(arguments.get(name)) for name in _ARGUMENTS})
    described_results = _Results(**{name: _described(results.get(name)) for name in _RESULTS})
    getattr(library, f"{direction}_{scalar}")(
        ctypes.byref(described), ctypes.byref(described_results), multiprocessors, descending,
        ctypes.c_int64(rows_of_a_pass))


def _run(library, p: Problem, multiprocessors: int = 1, descending: bool = False) -> dict[str, Tensor]:
    """Results and gradients: the same from scores that were kept as from scores made again."""
    results = _forward(library, p, multiprocessors, descending)
    kept, again = (_backward(library, p, results["marginal"], scores, multiprocessors=multiprocessors,
                             descending=descending) for scores in (results["scores"], None))
    torch.testing.assert_close(kept, again, rtol=0, atol=0, equal_nan=True)
    return results | kept


# Ragged in rows, classes and features; both shapes of tiles; one class, one row, no features.
@pytest.mark.parametrize(("rows", "classes", "features"), [
    (70, 10, 101), (70, 37, 68), (1, 1, 1), (33, 16, 64), (129, 17, 31), (5, 3, 0), (2, 1, 785)])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients(library, rows, classes, features, scales, dtype):
    p = problem(rows, classes, features, dtype, scales)
    assert_right(p, _run(library, p))


@pytest.mark.parametrize("classes", [5, 20])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_labels_weights_and_storage(library, mix, dtype, classes):
    p = problem(40, classes, 36, dtype, mix=mix)
    assert_right(p, _run(library, p))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("features", [36, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_layouts(library, dtype, features, layout):
    p = problem(20, 3, features, dtype)
    placed = replace(p, **{name: relayout(value, layout) for name, value in p.fields().items()
                           if value is not None and value.dim() == 2})
    expected, found = _run(library, p), _run(library, placed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_dimensional_strides(library):
    """Gradients of a sum have stride 0, columns of a table that of the table."""
    p = problem(20, 3, 8)
    ones = torch.ones(1).expand(20)
    columns = {name: torch.stack([value, value], 1)[:, 0]
               for name, value in p.fields().items() if value is not None and value.dim() == 1}
    p = replace(p, **columns | {"grad_marginal": ones, "grad_picked": ones})
    p = replace(p, grad_scores=torch.ones(1, 1).expand(20, 3))
    assert_right(p, _run(library, p))


@pytest.mark.parametrize("classes", [7, 130])
@pytest.mark.parametrize("multiprocessors", [1, 3, 132])
def test_any_division_among_blocks(library, multiprocessors, classes):
    """More multiprocessors: parts of the classes and of the rows, put together afterwards."""
    p = problem(300, classes, 70)
    assert_right(p, _run(library, p, multiprocessors))


@pytest.mark.parametrize("classes", [7, 40])
def test_no_barrier_is_missing(library, classes):
    p = problem(100, classes, 70)
    one, other = (_run(library, p, 40, descending) for descending in (False, True))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("classes", [7, 40])
@pytest.mark.parametrize("rows_of_a_pass", [64, 129])
def test_several_passes(library, rows_of_a_pass, classes, kept):
    p = problem(300, classes, 20)
    results = _forward(library, p)
    grads = _backward(library, p, results["marginal"], results["scores"] if kept else None, multiprocessors=2,
                      rows_of_a_pass=rows_of_a_pass)
    assert_right(p, results | grads)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("wanted", [("z",), ("means", "log_scales", "log_prior"), ("weights",), ("z", "weights")])
@pytest.mark.parametrize("classes", [7, 20])
def test_parts_of_the_gradient(library, classes, wanted, kept):
    p = problem(40, classes, 12)
    results = _forward(library, p)
    grads = _backward(library, p, results["marginal"], results["scores"] if kept else None, wanted)
    assert grads.keys() == {f"grad_{name}" for name in wanted}
    assert_right(p, grads)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_kept_scores(library, layout):
    p = problem(70, 20, 12)
    results = _forward(library, p)
    expected, found = (_backward(library, p, results["marginal"], scores)
                       for scores in (results["scores"], relayout(results["scores"], layout)))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kept", [True, False])
def test_a_posterior_is_at_most_one(library, kept):
    """Scores may lie above a marginal that was summed in another order."""
    p = problem(40, 1, 12)
    results = _forward(library, p)
    scores = results["scores"] if kept else None
    exact, low = (_backward(library, p, results["marginal"] - below, scores) for below in (0, 3))
    assert all(torch.equal(low[name], exact[name]) for name in exact)


@pytest.mark.parametrize("absent", ["grad_marginal", "grad_picked", "grad_scores"])
def test_results_that_nothing_depends_on(library, absent):
    p = replace(problem(40, 7, 12), **{absent: None})
    assert_right(p, _run(library, p))


@pytest.mark.parametrize("classes", [3, 20])
def test_without_scores(library, classes):
    p = problem(40, classes, 12)
    with_scores, without = _forward(library, p), _forward(library, p, with_scores=False)
    assert all(torch.equal(without[name], with_scores[name]) for name in without)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_batches(library, rows, scales):
    p = problem(rows, 3, 5, scales=scales)
    results = _run(library, p)
    for name in ("grad_means", "grad_log_scales", "grad_log_prior"):
        assert rows or torch.equal(results[name], torch.zeros_like(results[name]))
    assert all(result.isfinite().all() for result in results.values())


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("classes", [7, 40])
def test_ten_thousand_standard_deviations_away(library, classes, scales):
    p = problem(40, classes, 36, scales=scales)
    p = replace(p, z=p.z + 1e4)
    assert_right(p, _run(library, p))


@pytest.mark.parametrize("classes", [7, 40])
def test_classes_that_cannot_occur_have_no_gradient(library, classes):
    p = problem(40, classes, 12, mix="weighted")
    impossible = torch.arange(classes) % 3 == 1
    p = replace(p, log_prior=p.log_prior.masked_fill(impossible, -math.inf), grad_scores=None,
                weights=p.weights.masked_fill(impossible, 0.0))
    results, possible = _run(library, p), ~impossible
    for name in ("grad_means", "grad_log_scales", "grad_log_prior", "grad_weights"):
        of_class = results[name] if name != "grad_weights" else results[name].T
        assert torch.equal(of_class[impossible], torch.zeros_like(of_class[impossible]))
    left = replace(p, means=p.means[possible], log_scales=p.log_scales[possible], log_prior=p.log_prior[possible],
                   weights=p.weights[:, possible])
    rest = {name: results[name] for name in ("marginal", "picked", "grad_z")}
    rest |= {name: results[name][possible] for name in ("grad_means", "grad_log_scales", "grad_log_prior")}
    assert_right(left, rest)


def test_no_class_can_occur(library):
    p = replace(problem(5, 3, 4, mix="unlabelled"), log_prior=torch.full((3,), -math.inf), grad_scores=None)
    results = _run(library, p, 132)
    assert results["marginal"].isneginf().all()
    for name in ("grad_z", "grad_means", "grad_log_scales", "grad_log_prior"):
        assert torch.equal(results[name], torch.zeros_like(results[name]))


@pytest.mark.parametrize("log_scale", [-60.0, 60.0])
def test_scales_whose_square_is_no_float32(library, log_scale):
    """A scale of e^60 or e^-60: values are right and nothing else turns into no number."""
    p = problem(20, 3, 4, mix="labelled")
    p = replace(p, log_scales=torch.tensor([[0.0], [log_scale], [0.0]]).expand(3, 4), grad_scores=None,
                labels=torch.where(p.labels == 1, 0, p.labels))
    results = _run(library, p)
    for name in ("marginal", "picked", "grad_z", "grad_log_prior"):
        assert results[name].isfinite().all(), name
    for name in ("grad_means", "grad_log_scales"):
        assert results[name][::2].isfinite().all(), name


def test_a_row_of_no_number_spoils_its_own_results_and_the_sums_only(library):
    p = problem(20, 3, 4, mix="unlabelled")
    p.z[7, 2] = math.nan
    results = _run(library, p)
    others = torch.arange(20) != 7
    for name in ("marginal", "grad_z"):
        assert results[name][7].isnan().any()
        assert results[name][others].isfinite().all()
    assert results["grad_log_prior"].isnan().all()


def _plan(library, rows: int, classes: int, features: int, kept: bool) -> tuple[int, int, list[int]]:
    """Bytes that forward and backward ask for beside their results on an H200, and the largest grid."""
    found = (ctypes.c_int64 * 5)()
    library.plan(*map(ctypes.c_int64, (rows, classes, features)), 132, kept, found)
    return found[0], found[1], found[2:]


@pytest.mark.parametrize("kept", [True, False])
def test_memory_of_ten_classes_is_a_twentieth_of_z(library, kept):
    forward, backward, _ = _plan(library, 65536, 10, 784, kept)
    assert forward == 4 * (10 * 784 + 10)
    assert backward <= 0.05 * 4 * 65536 * 784


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("rows", "classes", "features"), [
    (4096, 10_000, 3072), (65536, 1000, 196), (10**9, 2, 2), (10, 10**6, 2), (10, 2, 10**6)])
def test_large_problems_fit(library, rows, classes, features, kept):
    """In memory the parameters' size three times and 16 MiB; in the grid what CUDA allows."""
    forward, backward, (x, y, z) = _plan(library, rows, classes, features, kept)
    parameters = 4 * classes * (features + 1)
    # a row of each part of the classes, of which there are many only where there are few rows
    assert forward <= parameters + 2**21
    assert backward <= 3 * parameters + 2**26
    assert x < 2**31
    assert max(y, z) < 2**16
