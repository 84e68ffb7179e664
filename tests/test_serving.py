"""No call goes to the reference in silence: on a build with the native library every cell is served by its kernel."""

import os
from collections import Counter
from itertools import islice

import pytest
import torch

from fastflow import _backend
from fastflow.bench import serving, watching
from fastflow.bench.serving import (
    Cell,
    markdown,
    observe,
    observe_act_norm,
    observe_affine_coupling,
    observe_channel_mix,
    observe_dequantize_logit,
    observe_elementwise,
    observe_gaussian_class_scores,
    observe_residual_coupling,
    observe_uniform_noise,
)
from fastflow.bench.watching import watch
from fastflow.ops import ScaleMap, affine_coupling, gaussian_class_scores
from fastflow.ops.scale_map import KINDS

# Additive gradients are views of the incoming ones, so no kernel is due there.
EXPECTED = {"act_norm": {"cpu"}, "affine_coupling": {"cpu"}, "channel_mix": {"cpu"}, "dequantize_logit": {"cpu"},
            "gaussian_class_scores": {"cpu"}, "logit": {"cpu"}, "mlp": {"cpu"}, "permute": {"cpu"},
            "residual_coupling": {"cpu"}, "sym_log": {"cpu"}, "uniform_noise": {"cpu"}}


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return list(observe())


@pytest.fixture
def native():
    state = _backend.state("cpu")
    if state.status != "available":
        message = f"the native library is {state.status}: {state.reason}"
        pytest.fail(message) if os.environ.get("FASTFLOW_REQUIRE") else pytest.skip(message)


def additive_backward(cell: Cell) -> bool:
    return cell.variant.startswith("additive") and cell.direction.endswith("backward")


def test_every_cell_is_served_by_its_kernel(native, cells):
    stray = Counter((cell.op, cell.layout, cell.dtype, cell.direction, cell.backend) for cell in cells
                    if not additive_backward(cell) and cell.backend not in EXPECTED[cell.op])
    assert not stray, f"{stray.total()} cells were not served by their kernel, most often {stray.most_common(5)}"


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "observed"), [
    ("triton", observe_act_norm), ("triton", observe_affine_coupling), ("triton", observe_channel_mix),
    ("triton", observe_elementwise),
    ("triton", observe_dequantize_logit), ("triton", observe_uniform_noise), ("cuda", observe_gaussian_class_scores),
    ("cuda", observe_residual_coupling)])
def test_every_cell_on_a_device_is_served_by_the_forced_kernel(monkeypatch, backend, observed):
    state = _backend.state(backend)
    if state.status == "unavailable":
        pytest.skip(state.reason)
    if backend == "triton":
        # The launcher that is entered serves; compiling thousands of kernels one after the other would take too long.
        monkeypatch.setattr("triton.runtime.jit.JITFunction.run", lambda *_, **__: None)
    with _backend.backend(backend):
        stray = {cell for cell in observed("cuda") if not additive_backward(cell) and cell.backend != backend}
    assert not stray


def test_the_table_holds_every_combination(cells):
    coupling = [cell for cell in cells if cell.op == "affine_coupling"]
    assert len({cell.variant for cell in coupling}) == 2 * len(KINDS)
    assert len(coupling) == 2 * len(KINDS) * len(serving.LAYOUTS) * len(serving.DTYPES) * len(serving.DIRECTIONS)
    assert len(set(coupling)) == len(coupling)
    assert {"mask", "channels_last", "interleaved", "stride 0 parameters"} <= {cell.layout for cell in coupling}


def test_additive_gradients_need_no_kernel(native, cells):
    assert {cell.backend for cell in cells if additive_backward(cell)} == {"views"}


def test_each_layout_is_what_it_is_called():
    def strides(layout):
        x, scale, _, where = serving._arguments(layout, torch.float32, torch.bfloat16, "cpu")
        return x, scale, where

    x, scale, _ = strides("channels_last")
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert not x.is_contiguous()
    assert scale.dtype == torch.bfloat16
    assert strides("strided")[0].stride(-1) == 2
    assert strides("transposed")[0].stride(0) < strides("transposed")[0].stride(1)
    assert strides("offset")[0].storage_offset() == 1
    assert strides("stride 0 parameters")[1].stride(0) == 0
    assert not strides("interleaved parameters")[1].is_contiguous()
    assert strides("interleaved")[2] == {"active": slice(1, None, 2)}
    assert strides("mask")[2]["mask"].shape[0] == strides("mask")[0].shape[1]
    assert strides("broadcast mask")[2]["mask"].shape[0] == 1


def test_a_call_that_goes_to_the_reference_is_seen():
    with _backend.backend("reference"):
        assert {cell.backend for cell in islice(observe_affine_coupling(), 100)} == {"reference"}
    additive = ScaleMap("additive")
    with watch() as served:
        torch.func.vmap(lambda x: affine_coupling(x[None], None, x[None], scale_map=additive)[0])(torch.randn(4, 6))
    assert served == {"affine_coupling": "reference"}


def test_the_dispatcher_falling_back_is_seen(monkeypatch):
    op = watching.ops()["gaussian_class_scores"]
    monkeypatch.setattr(op, "dispatch", op.fallback)
    with watch() as served:
        gaussian_class_scores(torch.randn(4, 3), torch.randn(2, 3), torch.randn(2, 3), torch.randn(2))
    assert served == {"gaussian_class_scores": "reference"}


def test_watching_ends_with_the_block():
    with watch() as served:
        pass
    affine_coupling(torch.randn(2, 2), None, torch.randn(2, 2), scale_map=ScaleMap("additive"))
    assert served == {}


def test_markdown_names_the_usual_backend_and_every_stray():
    table = markdown([
        Cell("affine_coupling", "exp", "mask", "float32", "forward", "cpu"),
        Cell("affine_coupling", "sigmoid", "mask", "float32", "forward", "cpu"),
        Cell("affine_coupling", "tanh", "mask", "float32", "inverse", "reference"),
        *(Cell("affine_coupling", "exp", "mask", dtype, "forward", "cpu") for dtype in serving.DTYPES),
    ])
    assert "| affine_coupling mask | cpu | cpu; reference: tanh inverse | cpu |" in table
