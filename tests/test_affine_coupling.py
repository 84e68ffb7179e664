"""affine_coupling against its formulas: values, gradients, inverse, log-determinant, transforms, bad input."""

import math
import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from oracles import LAYOUTS, assert_three_way, jacobian_log_det, relayout
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fastflow._backend import backend as forced_backend
from fastflow.ops import ScaleMap, affine_coupling
from fastflow.ops.affine_coupling import (
    KINDS,
    _backward,
    _backward_fallback,
    _fallback,
    _forward,
    backward_reference,
    reference,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SPLITS = ("all", "second", "odd", "mask")
FORMS = [pytest.param(first, inverse, id=f"{'add_scale' if first else 'scale_add'}-{'inverse' if inverse else 'forward'}")
         for first in (False, True) for inverse in (False, True)]  # fmt: skip
MAPS = {
    "additive": {}, "exp": {}, "sigmoid": {"bias": 2.0, "eps": 1e-3}, "sigmoid_no_eps": {"bias": 2.0},
    "softplus": {"bias": 0.5, "eps": 1e-3}, "tanh": {}, "tanh_gain": {}, "clamp_atan": {"clamp": 2.0},
    "clamp_tanh": {"clamp": 1.5}, "clamp_sigmoid": {"clamp": 2.0}, "soft_clip": {"clamp": 6.9},
}  # fmt: skip


def make_map(name: str, shift_first: bool, gain: Tensor | None = None) -> ScaleMap:
    kind = name.removesuffix("_no_eps").removesuffix("_gain")
    return ScaleMap(kind, **MAPS[name], gain=gain if name == "tanh_gain" else None, shift_first=shift_first)


def eager(x, scale, shift, *, scale_map, active=None, mask=None, log_det=None, inverse=False):
    """The formulas as a user of PyTorch writes them, in the wider dtype of x and shift: independent of the reference."""
    dtype = torch.promote_types(x.dtype, shift.dtype)
    part = (x if active is None else x[:, active]).to(dtype)
    s, t = (None if scale is None else scale.to(dtype)), shift.to(dtype)
    bias, eps, clamp, gain = scale_map.bias, scale_map.eps, scale_map.clamp, scale_map.gain
    gain = 1.0 if gain is None else gain.to(dtype).reshape(-1, *[1] * (x.dim() - 2))
    log_c = {
        "additive": lambda: torch.zeros_like(t),
        "exp": lambda: s,
        "sigmoid": lambda: torch.log(torch.sigmoid(s + bias) + eps) if eps else torch.nn.functional.logsigmoid(s + bias),
        "softplus": lambda: torch.log(torch.nn.functional.softplus(s + bias) + eps),
        "tanh": lambda: gain * torch.tanh(s),
        "clamp_atan": lambda: clamp * 0.636 * torch.atan(s),
        "clamp_tanh": lambda: clamp * torch.tanh(s),
        "clamp_sigmoid": lambda: clamp * 2 * (torch.sigmoid(s) - 0.5),
        "soft_clip": lambda: s / (1 + s.abs() / clamp),
    }[scale_map.kind]()
    if scale_map.kind == "sigmoid":
        c = torch.sigmoid(s + bias) + eps
    elif scale_map.kind == "softplus":
        c = torch.nn.functional.softplus(s + bias) + eps
    else:
        c = torch.exp(log_c)
    if inverse:
        new = part / c - t if scale_map.shift_first else (part - t) / c
        log_c = -log_c
    else:
        new = (part + t) * c if scale_map.shift_first else part * c + t
    if mask is not None:
        new, log_c = torch.where(mask, part, new), torch.where(mask, 0.0, log_c)
    z = x.clone()
    z[:, slice(None) if active is None else active] = new.to(x.dtype)
    total = log_c.flatten(1).sum(1)
    return z, total if log_det is None else log_det + total


def make_inputs(shape, name, *, shift_first=False, split="all", dtype=torch.float64, parameter_dtype=None, running=True):
    """Keyword arguments of affine_coupling: random tensors at the scale of 1 that float32 holds exactly."""
    active = {"second": slice((shape[1] + 1) // 2, None), "odd": slice(1, None, 2)}.get(split)
    count = len(range(shape[1])[active or slice(None)])
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    each = (shape[0], count, *shape[2:])
    return {
        "x": torch.randn(shape).to(dtype),
        "scale": None if name == "additive" else torch.randn(each).to(parameter_dtype or dtype),
        "shift": torch.randn(each).to(parameter_dtype or dtype),
        "scale_map": make_map(name, shift_first, 0.5 + torch.rand(count).to(accumulate)),
        "active": active,
        "mask": torch.rand(shape[1:]) < 0.5 if split == "mask" else None,
        "log_det": torch.randn(shape[0]).to(accumulate) if running else None,
    }


def cast(inputs: dict, dtype: torch.dtype) -> dict:
    """The same rounded values in another dtype, the gain of the scale map included."""
    def convert(value):
        return value.to(dtype) if isinstance(value, Tensor) and value.dtype != torch.bool else value
    scale_map = inputs["scale_map"]
    if scale_map.gain is not None:
        scale_map = ScaleMap("tanh", gain=convert(scale_map.gain), shift_first=scale_map.shift_first)
    return {**{name: convert(value) for name, value in inputs.items()}, "scale_map": scale_map}


def bounds(compute, inputs: dict) -> tuple[dict, dict, dict]:
    """What a result is measured with: `compute` (inputs -> dict of tensors) in storage dtype, in float32 and in float64.

    Float64 has no wider truth here: its own rounding error is that of float32 on the same values, 2^-29 times as large.
    """
    truth, single = compute(cast(inputs, torch.float64)), compute(cast(inputs, torch.float32))
    if inputs["x"].dtype == torch.float64:
        scaled = {name: truth[name] + (single[name].double() - truth[name]) * 2.0**-29 for name in truth}
        return scaled, scaled, truth
    return compute(inputs), single, truth


def leaves(inputs: dict) -> dict:
    """Detached copies that ask for gradients; the gain is among them by the name "gain"."""
    fresh = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()
             if isinstance(value, Tensor) and value.dtype != torch.bool}  # fmt: skip
    scale_map = inputs["scale_map"]
    if scale_map.gain is not None:
        fresh["gain"] = scale_map.gain.detach().clone().requires_grad_()
    return fresh


def call(function, inputs: dict, tensors: dict, inverse: bool):
    """`function` on `inputs` with the tensors in `tensors` instead of their own."""
    tensors = dict(tensors)
    scale_map = inputs["scale_map"]
    if "gain" in tensors:
        scale_map = ScaleMap("tanh", gain=tensors.pop("gain"), shift_first=scale_map.shift_first)
    given_here = {**inputs, **tensors, "scale_map": scale_map}
    return function(given_here.pop("x"), given_here.pop("scale"), given_here.pop("shift"), **given_here, inverse=inverse)


def values(function, inputs: dict, inverse: bool) -> dict[str, Tensor]:
    return dict(zip(("z", "log_det"), function(**inputs, inverse=inverse), strict=True))


@pytest.fixture(params=["reference", "fallback", "cpu"])
def backend(request, monkeypatch):
    """Who computes: the reference by autograd; the autograd.Function over the reference, as without a native library;
    the Function over the native library."""
    if request.param == "fallback":
        monkeypatch.setattr(_forward, "dispatch", _fallback)
        monkeypatch.setattr(_backward, "dispatch", _backward_fallback)
        yield "auto"
        return
    if request.param == "cpu" and not torch._C._dispatch_has_kernel_for_dispatch_key("fastflow::affine_coupling", "CPU"):
        pytest.skip("the native library is not built here")
    with forced_backend(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shift_first", "inverse"), FORMS)
@pytest.mark.parametrize("name", MAPS)
def test_values(backend, name, shift_first, inverse, dtype):
    for split, shape in zip(SPLITS, [(5, 37), (3, 7, 19), (3, 6, 5, 4), (2, 3, 3, 2, 5)], strict=True):
        inputs = make_inputs(shape, name, shift_first=shift_first, split=split, dtype=dtype)
        storage, single, truth = bounds(lambda i: values(eager, i, inverse), inputs)
        for key, value in values(affine_coupling, inputs, inverse).items():
            assert value.dtype == inputs["x" if key == "z" else "log_det"].dtype
            assert_three_way(value, (storage if key == "z" else single)[key], truth[key], name=f"{key} of {split}")


@pytest.mark.parametrize("parameter_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conditioner_in_another_dtype(backend, dtype, parameter_dtype):
    inputs = make_inputs((4, 6, 5), "sigmoid", split="odd", dtype=dtype, parameter_dtype=parameter_dtype)
    tensors = leaves(inputs)
    z, log_det = call(affine_coupling, inputs, tensors, False)
    (z.double().square().sum() + log_det.sum()).backward()
    assert (z.dtype, log_det.dtype) == (dtype, inputs["log_det"].dtype)
    for name, tensor in tensors.items():
        assert tensor.grad.dtype == tensor.dtype, name
    assert_three_way(z, eager(**inputs)[0], eager(**cast(inputs, torch.float64))[0])


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("split", SPLITS)
def test_every_layout_of_every_argument(backend, split, inverse):
    inputs = make_inputs((3, 6, 5, 4), "tanh_gain", split=split, dtype=torch.float32, running=False)
    z, log_det = affine_coupling(**inputs, inverse=inverse)
    for x_layout in LAYOUTS:
        for parameter_layout in LAYOUTS:
            x = relayout(inputs["x"], x_layout)
            moved = {**inputs, "x": x, "scale": relayout(inputs["scale"], parameter_layout),
                     "shift": relayout(inputs["shift"], LAYOUTS[(LAYOUTS.index(parameter_layout) + 1) % len(LAYOUTS)])}
            z_moved, log_det_moved = affine_coupling(**moved, inverse=inverse)
            name = f"x {x_layout}, scale {parameter_layout}"
            assert_three_way(z_moved, z, eager(**cast(inputs, torch.float64), inverse=inverse)[0], name=name)
            assert_three_way(log_det_moved, log_det, eager(**cast(inputs, torch.float64), inverse=inverse)[1], name=name)
            if backend != "reference":
                assert z_moved.stride() == torch.empty_like(x).stride(), name


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("shift_first", [False, True], ids=["scale_add", "add_scale"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_inverse_undoes_forward_and_log_dets_cancel(backend, name, shift_first, dtype):
    for split in SPLITS:
        inputs = make_inputs((4, 5, 3, 3), name, shift_first=shift_first, split=split, dtype=dtype, running=False)
        z, log_det = affine_coupling(**inputs)
        back, log_det_back = affine_coupling(**{**inputs, "x": z}, inverse=True)
        eager_back, _ = eager(**{**inputs, "x": eager(**inputs)[0]}, inverse=True)
        assert_three_way(back, eager_back, inputs["x"], name=split)
        assert torch.equal(log_det_back, -log_det)
        assert torch.equal(back.isnan(), inputs["x"].isnan())


@pytest.mark.parametrize(("shift_first", "inverse"), FORMS)
@pytest.mark.parametrize("name", MAPS)
def test_log_det_is_that_of_the_jacobian(backend, name, shift_first, inverse):
    for split, shape in (("mask", (3, 2, 2, 3)), ("odd", (3, 5))):
        inputs = make_inputs((1, *shape[1:]), name, shift_first=shift_first, split=split, running=False)
        x = torch.randn(shape, dtype=torch.float64)
        whole = {key: inputs[key].expand(shape[0], *inputs[key].shape[1:]) for key in ("scale", "shift") if inputs[key] is not None}
        _, log_det = affine_coupling(**{**inputs, **whole, "x": x}, inverse=inverse)
        expected = jacobian_log_det(lambda r, i=inputs: affine_coupling(**{**i, "x": r}, inverse=inverse)[0], x)
        torch.testing.assert_close(log_det, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shift_first", "inverse"), FORMS)
@pytest.mark.parametrize("name", MAPS)
def test_reference_is_twice_differentiable(name, shift_first, inverse):
    inputs = make_inputs((2, 3), name, shift_first=shift_first, split="odd" if shift_first else "mask")
    tensors = leaves(inputs)

    def function(*values):
        return call(affine_coupling, inputs, dict(zip(tensors, values, strict=True)), inverse)

    with forced_backend("reference"):
        assert gradcheck(function, tuple(tensors.values()))
        assert gradgradcheck(function, tuple(tensors.values()))


def loss_weights(inputs: dict, which: str) -> tuple[Tensor | None, Tensor | None]:
    """Random gradients of z and of log_det; z's is in x's dtype, as autograd delivers it."""
    grad_z = torch.randn(inputs["x"].shape).to(inputs["x"].dtype) if which != "log_det" else None
    grad_log_det = torch.randn(inputs["x"].shape[0]) if which != "z" else None
    return grad_z, grad_log_det


def gradients(function, inputs: dict, weights: tuple, inverse: bool) -> dict[str, Tensor]:
    tensors = leaves(inputs)
    outputs = call(function, inputs, tensors, inverse)
    used = [(out, w.to(out.dtype)) for out, w in zip(outputs, weights, strict=True) if w is not None]
    grads = torch.autograd.grad([out for out, _ in used], list(tensors.values()), [w for _, w in used],
                                materialize_grads=True)
    return dict(zip(tensors, grads, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shift_first", "inverse"), FORMS)
@pytest.mark.parametrize("name", MAPS)
def test_gradients(backend, name, shift_first, inverse, dtype):
    for split, shape, which in (("all", (4, 9), "z"), ("second", (3, 7, 5), "both"), ("odd", (3, 6, 4, 3), "log_det"),
                                ("mask", (2, 3, 4, 5), "both")):  # fmt: skip
        inputs = make_inputs(shape, name, shift_first=shift_first, split=split, dtype=dtype)
        weights = loss_weights(inputs, which)
        storage, single, truth = bounds(lambda i, w=weights: gradients(eager, i, w, inverse), inputs)
        for key, grad in gradients(affine_coupling, inputs, weights, inverse).items():
            plain = single if key in ("gain", "log_det") else storage
            assert_three_way(grad, plain[key], truth[key], name=f"grad_{key}, {split}, {which}")
