"""act_norm on every backend of the CPU: both forms, values and gradients against float64, refusals."""

import math

import pytest
import torch
from backends import cpu_backends
from bijections import assert_inverts, assert_log_det, scatter
from oracles import LAYOUTS, assert_same_bits_on_any_threads, assert_three_way, relayout
from torch.autograd import gradcheck, gradgradcheck

from fastflow.nn import ActNorm
from fastflow.ops import act_norm, elementwise_affine
from fastflow.ops.act_norm import _backward, _forward, backward_reference

SHAPES = [(3, 1), (4, 5), (2, 8, 7), (3, 4, 7, 7), (2, 2, 3, 2, 2)]
FORMS = {"shift first": act_norm, "shift last": elementwise_affine}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
backend = cpu_backends(_forward, _backward)


def formulas(form):
    """As a user of PyTorch writes them."""

    def compute(x, shift, log_scale, log_det, inverse):
        t, s = (value.view(-1, *[1] * (x.dim() - 2)) for value in (shift, log_scale))
        own = math.prod(x.shape[2:]) * log_scale.sum()
        if form == "shift first":
            z = x * torch.exp(-s) + t if inverse else (x - t) * torch.exp(s)
        else:
            z = (x - t) * torch.exp(-s) if inverse else x * torch.exp(s) + t
        return z, log_det - own if inverse else log_det + own

    return compute


def everything(function, x, shift, log_scale, log_det, inverse, weights):
    """Outputs and gradients by name."""
    leaves = [value.detach().clone().requires_grad_() for value in (shift, log_scale, log_det)]
    x = x.detach().requires_grad_()
    z, total = function(x, *leaves[:2], log_det=leaves[2], inverse=inverse)
    weights = weights[0].to(z.dtype), weights[1].to(total.dtype)
    grads = torch.autograd.grad((z, total), (x, *leaves), weights)
    names = ("grad_x", "grad_shift", "grad_log_scale", "grad_log_det")
    return {"z": z, "log_det": total, **dict(zip(names, grads, strict=True))}


def check(form, x, inverse, layout="contiguous", parameter_dtype=torch.float32):
    """The public function on x against float64, and against the formulas in float32."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    shift, log_scale = (torch.randn(x.shape[1]).to(parameter_dtype) for _ in range(2))
    log_det = torch.randn(x.shape[0]).to(wide)
    weights = torch.randn(x.shape).to(x.dtype), torch.randn(x.shape[0]).to(wide)

    def compute(dtype):
        given = (value.to(dtype) for value in (x, shift, log_scale, log_det))
        return everything(formulas(form), *given, inverse, weights)

    truth, single = compute(torch.float64), compute(torch.float32)
    if x.dtype == torch.float64:  # eager's rounding is float32's, 2^-29 times as large, and the truth has as much
        single = {name: truth[name] + (single[name].double() - truth[name]) * 2.0**-28 for name in truth}
    moved = relayout(x, layout)
    running, moved_shift, moved_log_scale = (relayout(value, "strided") for value in (log_det, shift, log_scale))
    found = everything(FORMS[form], moved, moved_shift, moved_log_scale, running, inverse, weights)

    others = [0, *range(2, x.dim())]  # the gradients of the parameters are sums in which terms cancel
    scaled = truth["z"] - (shift.double().view(-1, *[1] * (x.dim() - 2)) if (form == "shift first") == inverse else 0)
    g, h = weights[0].double().abs(), weights[1].double().abs().sum()
    terms = {"grad_log_scale": (g * scaled.abs()).sum(others) + math.prod(x.shape[2:]) * h,
             "grad_shift": truth["grad_x"].abs().sum(others) if (form == "shift first") != inverse else g.sum(others)}
    for name, value in found.items():
        dtype = wide if value.dtype == torch.float64 else value.dtype  # that of the arithmetic or of the storage
        assert_three_way(value, single[name].to(value.dtype), truth[name], dtype, f"{name} inverse {inverse}",
                         terms.get(name))
    assert found["grad_shift"].dtype == found["grad_log_scale"].dtype == parameter_dtype
    return moved, found["z"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(37, 5), (19, 35), (2, 1301), (3, 6, 5, 4), (2, 3, 3, 2, 5),
                                   (9, 1, 9, 9), (2, 3, 9, 31)], ids=str)  # fmt: skip
def test_kernels(backend, shape, dtype, layout):
    for form in FORMS:
        for inverse in (False, True):
            moved, z = check(form, torch.randn(shape).to(dtype), inverse, layout)
            assert z.stride() == (torch.empty_like(moved) if backend != "reference" else z).stride()


@pytest.mark.parametrize("parameter_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parameters_of_any_dtype(backend, dtype, parameter_dtype):
    for inverse in (False, True):
        check("shift first", torch.randn(6, 5, 3, 3).to(dtype), inverse, parameter_dtype=parameter_dtype)


@pytest.mark.parametrize("from_input", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shift_first", [False, True])
def test_backward_from_output_and_from_input(backend, shift_first, inverse, from_input):
    g, h, log_scale = torch.randn(9, 4, 6), torch.randn(9), torch.randn(4)
    saved, shift = torch.rand(9, 4, 6), -torch.rand(4)  # of one sign each, so that |g| and |h| give the terms' sizes
    settings = (shift_first, inverse, from_input)
    kernel = _backward.kernel(None if backend == "fallback" else backend, "cpu")

    def compute(function, g, h, dtype):
        return function(*(value.to(dtype) for value in (g, h, saved, shift, log_scale)), *settings)

    truth, single = (compute(backward_reference, g, h, dtype) for dtype in (torch.float64, torch.float32))
    terms = compute(backward_reference, g.abs(), h.abs(), torch.float64)
    for each in zip(compute(kernel, g, h, torch.float32), single, truth, terms, strict=True):
        assert_three_way(*each[:3], terms=each[3])


def test_many_threads_give_the_same_bits():
    x = torch.randn(3001, 70)
    assert_same_bits_on_any_threads(
        lambda: everything(act_norm, x, x[0], x[1], torch.zeros(3001), False, (x, x[:, 0])).values())


@pytest.mark.parametrize("shape", [(8193, 1024), (65, 2, 255, 257)], ids=str)
def test_outputs_larger_than_the_caches(shape):
    """These are written past the caches; parts of them are not."""
    g, x = torch.randn(2, *shape)
    shift, log_scale, log_det = torch.randn(shape[1]), torch.randn(shape[1]), torch.randn(shape[0])

    def compute(x, g, log_det):
        return everything(act_norm, x, shift.to(x.dtype), log_scale.to(x.dtype), log_det, False, (g, log_det))

    whole, truth = compute(x, g, log_det), compute(x.double(), g.double(), log_det.double())
    parts = [compute(*part) for part in zip(x.chunk(4), g.chunk(4), log_det.chunk(4), strict=True)]
    for name in ("z", "log_det", "grad_x"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    others = [0, *range(2, x.dim())]
    terms = {"grad_shift": whole["grad_x"].abs().sum(others), "grad_log_scale": (g * whole["z"]).abs().sum(others)}
    for name, size in terms.items():
        assert_three_way(whole[name], sum(part[name] for part in parts), truth[name], name=name, terms=size)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("shape", "layout"), [((4, 6), "contiguous"), ((3, 6, 4, 5), "channels_last"),
                                               ((5, 3, 7), "strided"), ((0, 4), "contiguous"),
                                               ((2, 3, 0), "contiguous")])  # fmt: skip
def test_opcheck(shape, layout, inverse):
    x, grad_z = torch.randn(2, *shape)
    x = relayout(x, layout) if x.numel() else x
    shift, log_scale, log_det = torch.randn(shape[1]), torch.randn(shape[1]).double(), torch.randn(shape[0])
    torch.library.opcheck(torch.ops.fastflow.act_norm.default, (x, shift, log_scale, log_det, not inverse, inverse))
    torch.library.opcheck(torch.ops.fastflow.act_norm_backward.default,
                          (grad_z, log_det, x, shift, log_scale, True, inverse, inverse))


@pytest.mark.parametrize("form", FORMS)
def test_compiles_into_one_graph(form):
    torch.compiler.reset()
    arguments = torch.randn(4, 6, 3), torch.randn(6), torch.randn(6), torch.zeros(4), False
    weights = torch.randn(4, 6, 3), torch.randn(4)
    compiled = torch.compile(FORMS[form], fullgraph=True, backend="aot_eager")
    expected = everything(FORMS[form], *arguments, weights)
    for name, value in everything(compiled, *arguments, weights).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_and_torch_func(form):
    given = tuple(torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((2, 3, 2), 3, 3))
    for inverse in (False, True):
        assert gradgradcheck(lambda *a, inverse=inverse: FORMS[form](*a, inverse=inverse), given)
    x, shift, log_scale = (value.detach() for value in given)
    per_sample = torch.vmap(torch.func.grad(lambda row: FORMS[form](row[None], shift, log_scale)[0].square().sum()))(x)
    (expected,) = torch.autograd.grad(FORMS[form](given[0], shift, log_scale)[0].square().sum(), given[0])
    torch.testing.assert_close(per_sample, expected)


def test_an_output_that_overflowed_and_is_not_used_does_not_count(backend):
    x, shift, log_scale = (torch.full(size, value, requires_grad=True) for size, value in (((2, 3), 1e30), ((3,), 0.0),
                                                                                         ((3,), 60.0)))  # fmt: skip
    z, log_det = act_norm(x, shift, log_scale)
    assert z.isinf().all()
    for grad, expected in zip(torch.autograd.grad(log_det.sum(), (x, shift, log_scale), allow_unused=True),
                              (0.0, 0.0, 2.0), strict=True):
        assert grad is None or torch.equal(grad, torch.full_like(grad, expected))


def test_log_det_is_summed_in_float64(backend):
    log_scale = torch.tensor([1e8, 1.0, -1e8, 0.0])
    _, log_det = act_norm(torch.zeros(2, 4), torch.zeros(4), log_scale)
    assert torch.equal(log_det, torch.ones(2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inverts(shape, dtype):
    assert_inverts(scatter(ActNorm(shape[1]).to(dtype)), torch.randn(shape, dtype=dtype))


def test_log_det_is_the_jacobian():
    assert_log_det(scatter(ActNorm(3).double()), torch.randn(2, 3, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients(inverse):
    x, shift, log_scale = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 2), 3, 3))
    log_det = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *a: act_norm(*a[:3], log_det=a[3], inverse=inverse), (x, shift, log_scale, log_det))


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    z, log_det = ActNorm(3)(torch.randn(rows, 3, 2, 2))
    assert z.shape == (rows, 3, 2, 2)
    assert log_det.shape == (rows,)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((torch.zeros(2), torch.zeros(3), torch.zeros(3)), ValueError, "act_norm: x has shape"),
    ((torch.zeros(2, 3), torch.zeros(4), torch.zeros(3)), ValueError, r"act_norm: shift has shape \(4,\), exp"),
    ((torch.zeros(2, 3), torch.zeros(3), torch.zeros(3, 1)), ValueError, "act_norm: log_scale has shape"),
    ((torch.zeros(2, 3).long(), torch.zeros(3), torch.zeros(3)), TypeError, "act_norm: x has dtype"),
    (([0.0], torch.zeros(3), torch.zeros(3)), TypeError, "act_norm: x is list"),
])
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        act_norm(*arguments)


def test_bad_log_det():
    with pytest.raises(ValueError, match=r"act_norm: log_det has shape \(3,\), expected \(2,\)"):
        act_norm(torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), log_det=torch.zeros(3))
