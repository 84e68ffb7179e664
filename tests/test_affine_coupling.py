"""affine_coupling against its formulas: values, gradients, inverse, log-determinant, on every backend of the CPU."""

import hypothesis.strategies as st
import pytest
import torch
from backends import cpu_backends
from coupling_cases import (
    DTYPES,
    MAPS,
    SPLITS,
    bounds,
    call,
    cast,
    eager,
    gradients,
    leaves,
    log_det_terms,
    make_inputs,
    values,
)
from hypothesis import HealthCheck, assume, given, settings
from oracles import LAYOUTS, assert_three_way, jacobian_log_det, relayout
from torch.autograd import gradcheck, gradgradcheck

from fastflow._backend import backend as forced_backend
from fastflow.ops import affine_coupling
from fastflow.ops.affine_coupling import _backward, _forward

every_map = pytest.mark.parametrize("name", MAPS)
both_shifts = pytest.mark.parametrize("shift_first", [False, True], ids=["scale_add", "add_scale"])
both_ways = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
backend = cpu_backends(_forward, _backward)


def everything(function, inputs, weights, inverse=False):
    """Outputs and gradients by name."""
    return values(function, inputs, inverse) | gradients(function, inputs, weights, inverse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both_ways
@both_shifts
@every_map
def test_values(backend, name, shift_first, inverse, dtype):
    for split, shape in zip(SPLITS, [(5, 37), (3, 7, 19), (3, 6, 5, 4), (2, 3, 3, 2, 5)], strict=True):
        inputs = make_inputs(shape, name, shift_first=shift_first, split=split, dtype=dtype)
        storage, single, truth = bounds(lambda i: values(eager, i, inverse), inputs)
        for key, value in values(affine_coupling, inputs, inverse).items():
            assert value.dtype == inputs["x" if key == "z" else "log_det"].dtype
            plain, terms = (storage, None) if key == "z" else (single, log_det_terms(inputs))
            assert_three_way(value, plain[key], truth[key], name=f"{key} of {split}", terms=terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both_ways
@both_shifts
@every_map
def test_gradients(backend, name, shift_first, inverse, dtype):
    for split, shape, used in (("all", (4, 9), "z"), ("second", (3, 7, 5), "z and log_det"),
                               ("odd", (3, 6, 4, 3), "log_det"), ("mask", (2, 3, 4, 5), "z and log_det")):  # fmt: skip
        inputs = make_inputs(shape, name, shift_first=shift_first, split=split, dtype=dtype)
        weights = (torch.randn(shape).to(dtype) if "z" in used else None,
                   torch.randn(shape[0]) if "log_det" in used else None)  # fmt: skip
        storage, single, truth = bounds(lambda i, w=weights: gradients(eager, i, w, inverse), inputs)
        for key, grad in gradients(affine_coupling, inputs, weights, inverse).items():
            plain = single if key in ("gain", "log_det") else storage
            assert_three_way(grad, plain[key], truth[key], name=f"grad_{key} of {split} from {used}")


@both_shifts
@every_map
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_inverse_undoes_forward_and_log_dets_cancel(backend, name, shift_first, dtype):
    for split in SPLITS:
        inputs = make_inputs((4, 5, 3, 3), name, shift_first=shift_first, split=split, dtype=dtype)

        def round_trip(function, inputs):
            z, log_det = function(**inputs)
            x, log_det = function(**{**inputs, "x": z, "log_det": log_det}, inverse=True)
            return {"x": x, "log_det": log_det}

        storage, single, _ = bounds(lambda i: round_trip(eager, i), inputs)
        back = round_trip(affine_coupling, inputs)
        assert_three_way(back["x"], storage["x"], inputs["x"], name=split)
        terms = log_det_terms(inputs)
        assert_three_way(back["log_det"], single["log_det"], inputs["log_det"], name=split, terms=terms)


@both_ways
@both_shifts
@every_map
def test_log_det_is_that_of_the_jacobian(backend, name, shift_first, inverse):
    for split, shape in (("mask", (3, 2, 2, 3)), ("odd", (3, 5))):
        inputs = make_inputs((1, *shape[1:]), name, shift_first=shift_first, split=split, running=False)
        x = torch.randn(shape, dtype=torch.float64)
        expected = jacobian_log_det(lambda r, i=inputs: affine_coupling(**{**i, "x": r}, inverse=inverse)[0], x)
        for key in ("scale", "shift"):
            if inputs[key] is not None:
                inputs[key] = inputs[key].expand(3, *inputs[key].shape[1:])
        log_det = affine_coupling(**{**inputs, "x": x}, inverse=inverse)[1]
        torch.testing.assert_close(log_det, expected, rtol=1e-12, atol=1e-12)


@both_ways
@both_shifts
@every_map
@pytest.mark.parametrize("name_of_backend", ["reference", "auto"])
def test_twice_differentiable(name, shift_first, inverse, name_of_backend):
    """The reference by itself; the fused op by the reference's backward, which only create_graph=True asks for."""
    inputs = make_inputs((2, 3), name, shift_first=shift_first, split="odd" if shift_first else "mask")
    tensors = leaves(inputs)

    def function(*given_here):
        return call(affine_coupling, inputs, dict(zip(tensors, given_here, strict=True)), inverse)

    with forced_backend(name_of_backend):
        assert gradcheck(function, tuple(tensors.values()))
        assert gradgradcheck(function, tuple(tensors.values()))


@both_ways
@pytest.mark.parametrize("split", SPLITS)
def test_layout_of_arguments_changes_nothing(backend, split, inverse):
    inputs = make_inputs((3, 6, 5, 4), "tanh_gain", split=split, dtype=torch.float32, running=False)
    weights = (torch.randn(3, 6, 5, 4), torch.randn(3))
    _, single, truth = bounds(lambda i: everything(eager, i, weights, inverse), inputs)
    for x_layout in LAYOUTS:
        for index, scale_layout in enumerate(LAYOUTS):
            shift_layout = LAYOUTS[index - 1]
            moved = {**inputs, "x": relayout(inputs["x"], x_layout), "scale": relayout(inputs["scale"], scale_layout),
                     "shift": relayout(inputs["shift"], shift_layout)}  # fmt: skip
            moved_weights = (relayout(weights[0], shift_layout), relayout(weights[1], "strided"))
            computed = everything(affine_coupling, moved, moved_weights, inverse)
            for key, value in computed.items():
                where = f"{key}, x {x_layout}, scale {scale_layout}, shift {shift_layout}"
                assert_three_way(value, single[key], truth[key], name=where)
            if backend != "reference":
                assert computed["z"].stride() == torch.empty_like(moved["x"]).stride()


@pytest.mark.parametrize("parameter_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conditioner_in_another_dtype(backend, dtype, parameter_dtype):
    inputs = make_inputs((4, 6, 5), "tanh_gain", split="odd", dtype=dtype, parameter_dtype=parameter_dtype)
    weights = (torch.randn(4, 6, 5).to(dtype), torch.randn(4))
    truth = everything(eager, cast(inputs, torch.float64), weights)
    plain = everything(eager, inputs, weights)
    for key, value in everything(affine_coupling, inputs, weights).items():
        coarse = dtype if torch.finfo(dtype).eps > torch.finfo(value.dtype).eps else value.dtype
        assert_three_way(value, plain[key], truth[key], dtype=coarse, name=key)


@both_ways
@both_shifts
@every_map
def test_values_in_masked_positions_are_never_read(backend, name, shift_first, inverse):
    inputs = make_inputs((3, 4, 5), name, shift_first=shift_first, split="mask", dtype=torch.float32)
    weights = (torch.randn(3, 4, 5), torch.randn(3))
    mask = inputs["mask"]
    expected = everything(affine_coupling, inputs, weights, inverse)
    for poison in (float("nan"), float("inf"), -float("inf"), 1e30, -1e30):
        poisoned = {**inputs, "shift": torch.where(mask, poison, inputs["shift"])}
        if inputs["scale"] is not None:
            poisoned["scale"] = torch.where(mask, poison, inputs["scale"])
        computed = everything(affine_coupling, poisoned, weights, inverse)
        for key, value in computed.items():
            assert torch.equal(value, expected[key]), f"{key} with {poison} under the mask"
        assert torch.equal(computed["z"][:, mask], inputs["x"][:, mask])


@both_ways
@both_shifts
@every_map
def test_extreme_scales(backend, name, shift_first, inverse):
    """Where float32 eager is finite so are we, at its accuracy; log|c| stays finite where c underflows or saturates."""
    inputs = make_inputs((1, 16), name, shift_first=shift_first, dtype=torch.float32)
    sizes = [0.0, 1e-20, 1e-4, 17.0, 30.0, 88.0, 300.0, 1e4]
    if inputs["scale"] is not None:
        inputs["scale"] = torch.tensor([sizes + [-size for size in sizes]])
    weights = (None, torch.ones(1))
    plain = everything(eager, inputs, weights, inverse)
    truth = everything(eager, cast(inputs, torch.float64), weights, inverse)
    computed = everything(affine_coupling, inputs, weights, inverse)
    assert computed["log_det"].isfinite().all()
    # Where z overflows, log_det alone still has a gradient; that of a loss which reads z is lost anyway.
    finite = computed["z"].isfinite()
    assert torch.equal(finite, plain["z"].isfinite())
    for key in ("z", "scale") if inputs["scale"] is not None else ("z",):
        assert_three_way(computed[key][finite], plain[key][finite], truth[key][finite], name=key)
    assert_three_way(computed["log_det"], plain["log_det"], truth["log_det"], name="log_det")


def test_running_log_det_is_added_to_and_left_alone(backend):
    inputs = make_inputs((5, 7), "sigmoid", dtype=torch.float32)
    before = inputs["log_det"].clone()
    _, log_det = affine_coupling(**inputs)
    _, own = affine_coupling(**{**inputs, "log_det": None})
    assert torch.equal(log_det, before + own)
    assert torch.equal(inputs["log_det"], before)
    assert log_det.data_ptr() != inputs["log_det"].data_ptr()


@pytest.mark.parametrize("split", SPLITS)
def test_rows_do_not_see_each_other(backend, split):
    inputs = make_inputs((7, 5, 6), "sigmoid", split=split, dtype=torch.float32)
    whole = values(affine_coupling, inputs, False)
    rows = {key: value[2:5] if key in ("x", "scale", "shift", "log_det") else value for key, value in inputs.items()}
    for key, value in values(affine_coupling, rows, False).items():
        assert torch.equal(value, whole[key][2:5]), key


@every_map
def test_additive_or_not_gradients_own_their_memory(backend, name):
    """Clipping one gradient in place must not change another."""
    for split in SPLITS:
        tensors = leaves(inputs := make_inputs((1, 4), name, split=split))
        z, log_det = call(affine_coupling, inputs, tensors)
        (z.square().sum() + log_det.sum()).backward()
        before = {key: tensor.grad.clone() for key, tensor in tensors.items()}
        tensors["x"].grad.mul_(2)
        for key, tensor in tensors.items():
            assert torch.equal(tensor.grad, 2 * before[key] if key == "x" else before[key]), (split, key)


def test_only_the_gradients_that_are_asked_for(backend):
    inputs = make_inputs((3, 6), "tanh_gain", split="second")
    for wanted in leaves(inputs):
        tensors = {key: tensor.requires_grad_(key == wanted) for key, tensor in leaves(inputs).items()}
        z, log_det = call(affine_coupling, inputs, tensors)
        (z.sum() + log_det.sum()).backward()
        assert [key for key, tensor in tensors.items() if tensor.grad is not None] == [wanted]


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3, 3), (3, 4, 0), (3, 4, 0, 5), (1, 2), (1, 2, 1, 1)], ids=str)
@pytest.mark.parametrize("split", SPLITS)
def test_empty_and_single(backend, split, shape):
    inputs = make_inputs(shape, "tanh_gain", split=split, dtype=torch.float32)
    weights = (torch.randn(shape), torch.randn(shape[0]))
    expected = everything(eager, inputs, weights)
    for key, value in everything(affine_coupling, inputs, weights).items():
        torch.testing.assert_close(value, expected[key], msg=lambda m, k=key: f"{k}: {m}")


def test_autocast_leaves_the_arithmetic_alone(backend):
    inputs = make_inputs((4, 6), "sigmoid", split="second", dtype=torch.float32, parameter_dtype=torch.bfloat16)
    expected = values(affine_coupling, inputs, False)
    with torch.autocast("cpu", torch.bfloat16):
        for key, value in values(affine_coupling, inputs, False).items():
            assert value.dtype == torch.float32
            assert torch.equal(value, expected[key])


shapes = st.lists(st.integers(0, 6), min_size=0, max_size=3).flatmap(
    lambda spatial: st.tuples(st.integers(0, 5), st.integers(1, 9), *map(st.just, spatial))
)


options = st.fixed_dictionaries({
    "name": st.sampled_from(sorted(MAPS)), "shift_first": st.booleans(), "split": st.sampled_from(SPLITS),
    "dtype": st.sampled_from(DTYPES), "parameter_dtype": st.sampled_from(DTYPES), "running": st.booleans(),
})  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(shape=shapes, options=options, inverse=st.booleans(),
       layouts=st.tuples(*[st.sampled_from((*LAYOUTS, "expanded"))] * 3), seed=st.integers(0, 2**16))  # fmt: skip
def test_any_arguments(backend, shape, options, inverse, layouts, seed):
    assume(shape[1] > 1 or options["split"] not in ("second", "odd"))
    torch.manual_seed(seed)
    inputs = make_inputs(shape, **options)
    for key, layout in zip(("x", "scale", "shift"), layouts, strict=True):
        tensor = inputs[key]
        if tensor is not None and tensor.numel():
            inputs[key] = tensor[:1].expand(tensor.shape) if layout == "expanded" else relayout(tensor, layout)
    z, log_det = affine_coupling(**inputs, inverse=inverse)
    storage, single, truth = bounds(lambda i: values(eager, i, inverse), inputs)
    assert_three_way(z, storage["z"], truth["z"], name="z")
    assert_three_way(log_det, single["log_det"], truth["log_det"], name="log_det", terms=log_det_terms(inputs))
