"""The Triton kernels of affine_coupling: every map, form, split, layout and dtype against float64."""

import numpy as np
import pytest
import torch
from coupling_cases import (
    DTYPES,
    MAPS,
    SPLITS,
    bounds,
    call,
    cast,
    eager,
    leaves,
    log_det_terms,
    make_inputs,
    values,
)
from oracles import LAYOUTS, assert_three_way, relayout
from test_affine_coupling import (  # noqa: F401, collected here to run on this file's backend
    test_empty_and_single,
    test_extreme_scales,
    test_only_the_gradients_that_are_asked_for,
    test_rows_do_not_see_each_other,
    test_running_log_det_is_added_to_and_left_alone,
)
from test_affine_coupling_packed import test_values_and_gradients as test_packed_parameters  # noqa: F401
from triton_process import DEVICE, INTERPRETED, MARKS, erring_division

from fastflow._backend import backend as forced_backend
from fastflow.kernels import affine_coupling_backward_cuda, affine_coupling_cuda
from fastflow.kernels.launch import multiprocessors
from fastflow.ops import affine_coupling
from fastflow.ops.affine_coupling import backward_reference, reference
from fastflow.ops.scale_map import KINDS

pytestmark = MARKS
every_map = pytest.mark.parametrize("name", MAPS)
both_shifts = pytest.mark.parametrize("shift_first", [False, True], ids=["scale_add", "add_scale"])
both_ways = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
# Blocks of 4 rows, one for each of a GPU's more than 100 multiprocessors or the interpreter's 4, the last one ragged.
ROWS = 13 if INTERPRETED else 1601


@pytest.fixture(autouse=True)
def backend():
    """Every call by the Triton kernels, every new tensor on their device."""
    with torch.device(DEVICE), forced_backend("triton"):
        yield "triton"


def everything(function, inputs, weights, inverse=False):
    """Outputs and gradients by name, of one forward and one backward pass."""
    tensors = leaves(inputs)
    z, log_det = call(function, inputs, tensors, inverse)
    weights = weights[0].to(z.dtype), weights[1].to(log_det.dtype)
    grads = torch.autograd.grad([z, log_det], list(tensors.values()), weights, materialize_grads=True)
    return {"z": z, "log_det": log_det} | {f"grad_{name}": grad for name, grad in zip(tensors, grads, strict=True)}


def check(computed, expected, inputs, where=""):
    """Every tensor of `computed` against (storage, float32, float64) in the three-way rule."""
    storage, single, truth = expected
    for key, value in computed.items():
        plain = single if key in ("log_det", "grad_gain", "grad_log_det") else storage
        terms = log_det_terms(inputs) if key == "log_det" else None
        assert_three_way(value, plain[key], truth[key], name=f"{key} {where}", terms=terms)


@both_ways
@both_shifts
@every_map
def test_values_and_gradients_in_three_blocks_of_features(name, shift_first, inverse):
    """Features 0-255 are passive, 256-511 both, 512-599 active."""
    inputs = make_inputs((ROWS, 600), name, shift_first=shift_first, split="second", dtype=torch.float32)
    weights = torch.randn(ROWS, 600), torch.randn(ROWS)
    expected = bounds(lambda i: everything(eager, i, weights, inverse), inputs)
    check(everything(affine_coupling, inputs, weights, inverse), expected, inputs)


@pytest.mark.skipif(not INTERPRETED, reason="replaces the division of the interpreter")
@both_ways
@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_no_eps", "softplus", "tanh_gain", "clamp_atan", "soft_clip",
                                  "inverse_sigmoid"])
def test_tolerance_holds_with_the_division_of_the_hardware(name, inverse, monkeypatch):
    inputs = make_inputs((13, 301), name, shift_first=inverse, dtype=torch.float32)
    weights = torch.randn(13, 301), torch.randn(13)
    expected = bounds(lambda i: everything(eager, i, weights, inverse), inputs)
    erring_division(monkeypatch)
    check(everything(affine_coupling, inputs, weights, inverse), expected, inputs)


@pytest.mark.parametrize("shape", [(5, 6, 9, 11), (3, 14, 5, 3, 3), (3, 8, 81)], ids=str)
@pytest.mark.parametrize("split", SPLITS)
def test_layouts(split, shape):
    inverse = len(shape) == 4
    inputs = make_inputs(shape, "tanh_gain", split=split, dtype=torch.float32)
    weights = torch.randn(shape), torch.randn(shape[0])
    expected = bounds(lambda i: everything(eager, i, weights, inverse), inputs)
    for index, layout in enumerate(LAYOUTS):
        others = LAYOUTS[index - 1], LAYOUTS[index - 2], LAYOUTS[index - 3]
        moved = {**inputs, "x": relayout(inputs["x"], layout), "scale": relayout(inputs["scale"], others[0]),
                 "shift": relayout(inputs["shift"], others[1]), "log_det": relayout(inputs["log_det"], "strided")}
        moved_weights = relayout(weights[0], others[2]), relayout(weights[1], "strided")
        computed = everything(affine_coupling, moved, moved_weights, inverse)
        check(computed, expected, inputs, where=f"of x {layout}, scale, shift, grad_z {others}")
        assert computed["z"].stride() == torch.empty_like(moved["x"]).stride()


@pytest.mark.parametrize("parameter_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, parameter_dtype):
    if INTERPRETED and (dtype, parameter_dtype) == (torch.float64, torch.bfloat16):
        pytest.skip("the interpreter cannot round float64 to bfloat16")
    for name, split, inverse in (("tanh_gain", "odd", False), ("sigmoid", "second", True)):
        inputs = make_inputs((5, 6, 45), name, split=split, dtype=dtype, parameter_dtype=parameter_dtype)
        weights = torch.randn(5, 6, 45).to(dtype), torch.randn(5)
        truth = everything(eager, cast(inputs, torch.float64), weights, inverse)
        if dtype == torch.float64:
            storage, _, truth = bounds(lambda i, w=weights, v=inverse: everything(eager, i, w, v), inputs)
        else:
            storage = everything(eager, inputs, weights, inverse)
        for key, value in everything(affine_coupling, inputs, weights, inverse).items():
            coarsest = max(dtype, value.dtype, key=lambda each: torch.finfo(each).eps)
            assert_three_way(value, storage[key], truth[key], dtype=coarsest, name=f"{key} {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("from_input", [False, True], ids=["from_output", "from_input"])
@both_ways
@both_shifts
def test_backward_from_output_and_from_input(shift_first, inverse, from_input, dtype):
    shape = (ROWS, 300)
    saved, grad_z = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    scale, shift, grad_log_det = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.randn(ROWS)
    gain = 0.5 + torch.rand(300)
    settings = (None, 0, 1, KINDS.index("tanh"), 0.0, 0.0, 1.0, shift_first, inverse, from_input, 0)

    def compute(function, dtype=None):
        tensors = [t if dtype is None else t.to(dtype) for t in (grad_z, grad_log_det, saved, scale, shift, gain)]
        return function(*tensors, *settings)

    computed, truth = compute(affine_coupling_backward_cuda), compute(backward_reference, torch.float64)
    storage, single = compute(backward_reference), compute(backward_reference, torch.float32)
    for index, key in enumerate(("x", "parameters", "gain")):
        plain = single if key == "gain" else storage
        assert_three_way(computed[index], plain[index], truth[index], name=f"grad_{key}")


@both_ways
def test_few_rows_are_shared_by_programs(inverse):
    """Three rows leave multiprocessors idle: the features of a row are split, and the partial log_dets summed."""
    inputs = make_inputs((3, 5000), "sigmoid", split="second", dtype=torch.float32)
    weights = torch.randn(3, 5000), torch.randn(3)
    expected = bounds(lambda i: everything(eager, i, weights, inverse), inputs)
    check(everything(affine_coupling, inputs, weights, inverse), expected, inputs)


def test_gain_of_many_rows_is_summed_by_few_programs():
    rows = 40 * multiprocessors(torch.empty(0).device) + 7
    inputs = make_inputs((rows, 3, 2), "tanh_gain", split="odd", dtype=torch.float32)
    weights = torch.randn(rows, 3, 2), torch.randn(rows)
    expected = bounds(lambda i: everything(eager, i, weights), inputs)
    computed = everything(affine_coupling, inputs, weights)
    check(computed, expected, inputs)
    again = everything(affine_coupling, inputs, weights)
    assert all(torch.equal(value, again[key]) for key, value in computed.items())


@pytest.mark.parametrize("split", SPLITS)
def test_overlapping_arguments(split):
    """Expanded tensors: a conditioner that ignores its input, the gradient of a sum."""
    inputs = make_inputs((5, 6, 7), "sigmoid", split=split, dtype=torch.float32)
    for key, tensor in inputs.items():
        if key in ("x", "scale", "shift", "log_det"):
            inputs[key] = tensor[:1].expand_as(tensor)
    weights = torch.ones(()).expand(5, 6, 7), torch.ones(()).expand(5)
    expected = bounds(lambda i: everything(eager, i, weights), inputs)
    check(values(affine_coupling, inputs, False), expected, inputs)
    check(everything(affine_coupling, inputs, weights), expected, inputs)


@every_map
def test_what_is_passive_is_copied_and_never_computed_with(name):
    for split in ("second", "odd", "mask"):
        inputs = make_inputs((4, 6, 5), name, split=split, dtype=torch.float32)
        mask = inputs["mask"]
        passive = torch.ones(6, 5, dtype=torch.bool) if mask is None else mask
        if mask is None:
            passive[inputs["active"]] = False
        poison = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30]).view(4, 1, 1)
        poisoned = {**inputs, "x": torch.where(passive, poison, inputs["x"])}
        if mask is not None:
            poisoned["shift"] = torch.where(mask, poison, inputs["shift"])
            poisoned["scale"] = None if name == "additive" else torch.where(mask, poison, inputs["scale"])
        expected = values(affine_coupling, inputs, False)
        expected["z"] = torch.where(passive, poison, expected["z"])
        for key, value in values(affine_coupling, poisoned, False).items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(not INTERPRETED, reason="the memory is never touched, which only the CPU allows")
@pytest.mark.parametrize("strides", [(2**30 + 2, 1), (1, 2**30 + 2)], ids=["rows", "channels"])
def test_offsets_beyond_32_bits(strides):
    memory = torch.from_numpy(np.zeros(2**31 + 16, np.uint16)).view(torch.float16)
    inputs = make_inputs((3, 3), "exp", split="all", dtype=torch.float16)
    for key in ("x", "scale", "shift"):
        expected = values(eager, inputs, False)
        moved = {**inputs, key: memory.as_strided((3, 3), strides).copy_(inputs[key])}
        computed = values(affine_coupling, moved, False)
        assert_three_way(computed["z"], expected["z"], values(eager, cast(inputs, torch.float64), False)["z"])


if not INTERPRETED:
    from test_affine_coupling import (  # noqa: F401, too many for the interpreter
        test_any_arguments,
        test_conditioner_in_another_dtype,
        test_gradients,
        test_inverse_undoes_forward_and_log_dets_cancel,
        test_layout_of_arguments_changes_nothing,
        test_log_det_is_that_of_the_jacobian,
        test_values,
        test_values_in_masked_positions_are_never_read,
    )

    def test_runs_on_the_current_stream():
        inputs = make_inputs((4096, 128), "tanh_gain", split="second", dtype=torch.float32)
        weights = torch.randn(4096, 128), torch.randn(4096)
        expected = everything(affine_coupling, inputs, weights)
        stream, late = torch.cuda.Stream(), {**inputs, "x": torch.zeros_like(inputs["x"])}
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # the kernels must wait for the x that this stream writes after it
            late["x"].copy_(inputs["x"])
            computed = everything(affine_coupling, late, weights)
        stream.synchronize()
        assert all(torch.equal(value, expected[key]) for key, value in computed.items())

    def test_captured_in_a_graph_and_replayed_on_new_values():
        inputs = make_inputs((64, 6, 40), "tanh_gain", split="odd", dtype=torch.float32)
        weights = torch.randn(64, 6, 40), torch.randn(64)
        fresh = make_inputs((64, 6, 40), "tanh_gain", split="odd", dtype=torch.float32)
        fresh["scale_map"] = inputs["scale_map"]
        expected = everything(affine_coupling, fresh, weights)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            everything(affine_coupling, inputs, weights)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            computed = everything(affine_coupling, inputs, weights)
        for key in ("x", "scale", "shift", "log_det"):
            inputs[key].copy_(fresh[key])
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(value, expected[key]) for key, value in computed.items())

    def test_never_waits_for_the_device():
        inputs = make_inputs((64, 600), "tanh_gain", split="second", dtype=torch.float32)
        weights = torch.randn(64, 600), torch.randn(64)
        everything(affine_coupling, inputs, weights)
        torch.cuda.set_sync_debug_mode("error")
        try:
            everything(affine_coupling, inputs, weights)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.slow
    @pytest.mark.parametrize("layout", ["contiguous", "transposed"])
    def test_more_than_two_to_the_31_elements(layout):
        rows, features = 1_100_003, 2048
        x, parameters = (torch.randn(rows, features, dtype=torch.bfloat16) for _ in range(2))
        scale, shift = parameters.chunk(2, 1)
        x = relayout(x, layout)
        settings = (None, None, None, features // 2, 1, KINDS.index("exp"), 0.0, 0.0, 1.0, False, False)
        z, log_det = affine_coupling_cuda(x, scale, shift, *settings)
        for part in (slice(0, 5), slice(rows // 2, rows // 2 + 5), slice(-5, None)):
            arguments = (x[part].double(), scale[part].double(), shift[part].double())
            truth = reference(*arguments, *settings)
            plain = reference(x[part], scale[part], shift[part], *settings)
            assert_three_way(z[part], plain[0], truth[0], name="z")
            assert_three_way(log_det[part], plain[1], truth[1], name="log_det",
                             terms=arguments[1].abs().sum(1))
