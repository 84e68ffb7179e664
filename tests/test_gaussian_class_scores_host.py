"""The CUDA kernels of the Gaussian class scores, run on the host by csrc/testing/thread_block.h, against 80-bit truth."""

import ctypes
import math
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import require
from oracles import LAYOUTS, assert_three_way, relayout
from torch import Tensor

from fastflow.ops._checks import compute_dtype
from fastflow.ops.gaussian_class_scores import backward_reference, reference

ROOT = Path(__file__).resolve().parent.parent
_STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_ARGUMENTS = ("z", "means", "log_scales", "log_prior", "labels", "weights", "marginal", "grad_marginal", "grad_picked",
              "grad_scores")
_FORWARD, _BACKWARD = ("marginal", "picked", "scores"), ("z", "means", "log_scales", "log_prior", "weights")
_RESULTS = (*_FORWARD, *(f"grad_{name}" for name in _BACKWARD))


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
    loaded = ctypes.CDLL(str(path))
    for name in ("forward_float", "forward_double", "backward_float", "backward_double"):
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


@dataclass(frozen=True)
class Problem:
    """The op's arguments and the gradients of its results; None where there is none."""

    z: Tensor
    means: Tensor
    log_scales: Tensor
    log_prior: Tensor
    labels: Tensor | None = None
    weights: Tensor | None = None
    grad_marginal: Tensor | None = None
    grad_picked: Tensor | None = None
    grad_scores: Tensor | None = None

    @property
    def given(self) -> tuple[Tensor | None, ...]:
        return self.z, self.means, self.log_scales, self.log_prior, self.labels, self.weights

    @property
    def pulled(self) -> tuple[Tensor | None, ...]:
        return self.grad_marginal, self.grad_picked, self.grad_scores

    def fields(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


SCALES = {"class_diag": (False, False), "shared_diag": (True, False), "isotropic": (False, True), "one": (True, True)}
MIXES = ("unlabelled", "labelled", "weighted", "labelled and weighted")


def _problem(rows: int, classes: int, features: int, dtype: torch.dtype = torch.float32, scales: str = "class_diag",
             mix: str = "labelled and weighted") -> Problem:
    """Rows near their class, far from the origin; gradients of everything."""
    own = torch.float64 if dtype == torch.float64 else torch.float32
    means = 4 + torch.randn(classes, features, dtype=own) / 2
    which = torch.randint(classes, (rows,))
    z = (means[which] + torch.randn(rows, features, dtype=own)).to(dtype)
    shared_by_classes, shared_by_features = SCALES[scales]
    shape = 1 if shared_by_classes else classes, 1 if shared_by_features else features
    labels = torch.where(torch.rand(rows) < 0.5, which, -1) if "labelled" in mix.replace("unlabelled", "") else None
    return Problem(
        z, means, 0.3 * torch.randn(shape, dtype=own), torch.randn(classes, dtype=own).log_softmax(0), labels,
        torch.rand(rows, classes, dtype=own) if "weighted" in mix else None, torch.randn(rows, dtype=own),
        torch.randn(rows, dtype=own), torch.randn(rows, classes, dtype=own) / classes)


def _forward(library, p: Problem, multiprocessors: int = 1, descending: bool = False, with_scores: bool = True):
    """{name: result}, and the bytes of workspace."""
    rows, classes = p.z.shape[0], p.means.shape[0]
    results = {name: torch.full(shape, math.nan, dtype=p.means.dtype)
               for name, shape in (("marginal", (rows,)), ("picked", (rows,)), ("scores", (rows, classes)))}
    if not with_scores:
        del results["scores"]
    return results, _call(library, "forward", p.fields(), results, multiprocessors, descending)


def _backward(library, p: Problem, marginal: Tensor, wanted: tuple[str, ...] = _BACKWARD, multiprocessors: int = 1,
              descending: bool = False):
    results = {f"grad_{name}": torch.full(getattr(p, name).shape, math.nan, dtype=getattr(p, name).dtype)
               for name in wanted if getattr(p, name) is not None}
    arguments = p.fields() | {"marginal": marginal}
    return results, _call(library, "backward", arguments, results, multiprocessors, descending)


def _call(library, direction, arguments, results, multiprocessors, descending) -> int:
    scalar = "double" if arguments["means"].dtype == torch.float64 else "float"
    described = _Arguments(**{name: _described(arguments.get(name)) for name in _ARGUMENTS})
    described_results = _Results(**{name: _described(results.get(name)) for name in _RESULTS})
    return getattr(library, f"{direction}_{scalar}")(
        ctypes.byref(described), ctypes.byref(described_results), multiprocessors, descending)


def _long(tensor: Tensor | None, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.longdouble) if tensor is None else tensor.double().numpy().astype(np.longdouble)


def _truth(p: Problem) -> dict[str, tuple[Tensor, Tensor]]:
    """{name: (value, sum of the absolute values of what it adds up)} in 80-bit floating point."""
    (rows, features), classes = p.z.shape, p.means.shape[0]
    z, means, log_scales, log_prior = (_long(tensor, ()) for tensor in p.given[:4])
    scale = np.broadcast_to(np.exp(-log_scales), means.shape)
    distance = (z[:, None] - means) * scale
    normal = np.log(2 * np.longdouble(np.pi)) / 2
    scores = log_prior - (distance**2 / 2 + log_scales + normal).sum(-1)
    sizes = abs(log_prior) + (distance**2 / 2 + abs(log_scales) + normal).sum(-1)
    top = scores.max(1, keepdims=True)
    marginal = (top + np.log(np.exp(scores - top).sum(1, keepdims=True)))[:, 0]

    chosen = _long(p.weights, scores.shape).copy()
    labelled = np.zeros(rows, bool) if p.labels is None else p.labels.numpy() >= 0
    if p.labels is not None:
        chosen[labelled] = np.eye(classes)[p.labels.numpy()[labelled]]
    of_marginal, of_picked = (_long(grad, (rows,))[:, None] for grad in (p.grad_marginal, p.grad_picked))
    posterior = np.exp(scores - marginal[:, None])
    c = _long(p.grad_scores, scores.shape) + of_marginal * posterior + of_picked * chosen
    # an error of a score is as large as its terms, and moves the posterior by as much
    of_c = abs(_long(p.grad_scores, scores.shape)) + abs(of_picked * chosen) + abs(of_marginal) * posterior * (1 + sizes)
    pull, of_pull = ((a[..., None] * b * scale) for a, b in ((c, distance), (of_c, abs(distance))))
    squares = distance**2
    for_scales, of_scales = (a[..., None] * b for a, b in ((c, squares - 1), (of_c, squares + 1)))
    axes = tuple(axis for axis in (0, 1) if log_scales.shape[axis] != means.shape[axis])
    free = ~labelled[:, None] * of_picked
    values = {
        "marginal": (marginal, sizes.min(1)), "picked": ((chosen * scores).sum(1), (abs(chosen) * sizes).sum(1)),
        "scores": (scores, sizes), "grad_z": (-pull.sum(1), of_pull.sum(1)),
        "grad_means": (pull.sum(0), of_pull.sum(0)),
        "grad_log_scales": (for_scales.sum(0).sum(axes, keepdims=True), of_scales.sum(0).sum(axes, keepdims=True)),
        "grad_log_prior": (c.sum(0), of_c.sum(0)), "grad_weights": (free * scores, abs(free) * sizes)}
    return {name: tuple(torch.from_numpy(each.astype(float)) for each in pair) for name, pair in values.items()}


def _assert_right(p: Problem, results: dict[str, Tensor]) -> None:
    truth = _truth(p)
    marginal, picked, scores = reference(*p.given, True)
    parts = backward_reference(*p.given, marginal, *p.pulled, True, True, p.weights is not None)
    eager = {"marginal": marginal, "picked": picked, "scores": scores} | {
        f"grad_{name}": part for name, part in zip(_BACKWARD, parts, strict=True)}
    for name, result in results.items():
        value, terms = truth[name]
        assert_three_way(result, eager[name], value, dtype=result.dtype, name=name, terms=terms)


def _run(library, p: Problem, multiprocessors: int = 1, descending: bool = False) -> dict[str, Tensor]:
    results, _ = _forward(library, p, multiprocessors, descending)
    return results | _backward(library, p, results["marginal"], multiprocessors=multiprocessors,
                               descending=descending)[0]


# Ragged in rows, classes and features; both shapes of tiles; one class, one row, no features.
@pytest.mark.parametrize(("rows", "classes", "features"), [
    (70, 10, 101), (70, 37, 68), (1, 1, 1), (33, 16, 64), (129, 17, 31), (5, 3, 0), (2, 1, 785)])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients(library, rows, classes, features, scales, dtype):
    p = _problem(rows, classes, features, dtype, scales)
    _assert_right(p, _run(library, p))


@pytest.mark.parametrize("classes", [5, 20])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_labels_weights_and_storage(library, mix, dtype, classes):
    p = _problem(40, classes, 36, dtype, mix=mix)
    _assert_right(p, _run(library, p))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("features", [36, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_layouts(library, dtype, features, layout):
    p = _problem(20, 3, features, dtype)
    placed = replace(p, **{name: relayout(value, layout) for name, value in p.fields().items()
                           if value is not None and value.dim() == 2})
    expected, found = _run(library, p), _run(library, placed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_dimensional_strides(library):
    """Gradients of a sum have stride 0, columns of a table that of the table."""
    p = _problem(20, 3, 8)
    ones = torch.ones(1).expand(20)
    columns = {name: torch.stack([value, value], 1)[:, 0]
               for name, value in p.fields().items() if value is not None and value.dim() == 1}
    p = replace(p, **columns | {"grad_marginal": ones, "grad_picked": ones})
    p = replace(p, grad_scores=torch.ones(1, 1).expand(20, 3))
    _assert_right(p, _run(library, p))


@pytest.mark.parametrize("classes", [7, 100])
@pytest.mark.parametrize("multiprocessors", [1, 3, 132])
def test_any_division_among_blocks(library, multiprocessors, classes):
    """More multiprocessors: parts of the classes and of the rows, put together afterwards."""
    p = _problem(300, classes, 70)
    _assert_right(p, _run(library, p, multiprocessors))


@pytest.mark.parametrize("classes", [7, 40])
def test_no_barrier_is_missing(library, classes):
    p = _problem(100, classes, 70)
    one, other = (_run(library, p, 40, descending) for descending in (False, True))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_several_passes(library):
    """Coefficients of 1000 classes are kept for a few hundred rows at a time."""
    p = _problem(300, 1000, 4)
    results, _ = _forward(library, p)
    grads, allocated = _backward(library, p, results["marginal"], multiprocessors=2)
    _assert_right(p, results | grads)
    assert allocated < 300 * 1000 * 4


@pytest.mark.parametrize("wanted", [("z",), ("means", "log_scales", "log_prior"), ("weights",), ("z", "weights")])
@pytest.mark.parametrize("classes", [7, 20])
def test_parts_of_the_gradient(library, classes, wanted):
    p = _problem(40, classes, 12)
    marginal = _forward(library, p)[0]["marginal"]
    grads, _ = _backward(library, p, marginal, wanted)
    assert grads.keys() == {f"grad_{name}" for name in wanted}
    _assert_right(p, grads)


@pytest.mark.parametrize("absent", ["grad_marginal", "grad_picked", "grad_scores"])
def test_results_that_nothing_depends_on(library, absent):
    p = replace(_problem(40, 7, 12), **{absent: None})
    _assert_right(p, _run(library, p))


@pytest.mark.parametrize("classes", [3, 20])
def test_without_scores(library, classes):
    p = _problem(40, classes, 12)
    with_scores, without = _forward(library, p)[0], _forward(library, p, with_scores=False)[0]
    assert all(torch.equal(without[name], with_scores[name]) for name in without)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_batches(library, rows, scales):
    p = _problem(rows, 3, 5, scales=scales)
    results = _run(library, p)
    for name in ("grad_means", "grad_log_scales", "grad_log_prior"):
        assert rows or torch.equal(results[name], torch.zeros_like(results[name]))
    assert all(result.isfinite().all() for result in results.values())


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("classes", [7, 40])
def test_ten_thousand_standard_deviations_away(library, classes, scales):
    p = _problem(40, classes, 36, scales=scales)
    p = replace(p, z=p.z + 1e4)
    _assert_right(p, _run(library, p))


@pytest.mark.parametrize("classes", [7, 40])
def test_classes_that_cannot_occur_have_no_gradient(library, classes):
    p = _problem(40, classes, 12, mix="weighted")
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
    _assert_right(left, rest)


def test_no_class_can_occur(library):
    p = replace(_problem(5, 3, 4, mix="unlabelled"), log_prior=torch.full((3,), -math.inf), grad_scores=None)
    results = _run(library, p, 132)
    assert results["marginal"].isneginf().all()
    for name in ("grad_z", "grad_means", "grad_log_scales", "grad_log_prior"):
        assert torch.equal(results[name], torch.zeros_like(results[name]))


@pytest.mark.parametrize("log_scale", [-60.0, 60.0])
def test_scales_whose_square_is_no_float32(library, log_scale):
    """A scale of e^60 or e^-60: values are right and nothing else turns into no number."""
    p = _problem(20, 3, 4, mix="labelled")
    p = replace(p, log_scales=torch.tensor([[0.0], [log_scale], [0.0]]).expand(3, 4), grad_scores=None,
                labels=torch.where(p.labels == 1, 0, p.labels))
    results = _run(library, p)
    for name in ("marginal", "picked", "grad_z", "grad_log_prior"):
        assert results[name].isfinite().all(), name
    for name in ("grad_means", "grad_log_scales"):
        assert results[name][::2].isfinite().all(), name


def test_a_row_of_no_number_spoils_its_own_results_only(library):
    p = _problem(20, 3, 4, mix="unlabelled")
    p.z[7, 2] = math.nan
    results = _run(library, p)
    others = torch.arange(20) != 7
    for name in ("marginal", "grad_z"):
        assert results[name][7].isnan().any()
        assert results[name][others].isfinite().all()


def test_memory(library):
    """Beside the results: in forward the parameters' size, in backward also at most a twentieth of z for 10 classes."""
    p = _problem(2048, 10, 784, mix="unlabelled")
    results, forward = _forward(library, p, multiprocessors=132, with_scores=False)
    assert forward <= 4 * (p.means.numel() + 10)
    _, backward = _backward(library, p, results["marginal"], multiprocessors=4)
    assert backward - forward <= 0.05 * 4 * p.z.numel()
