"""Symmetric logarithm: values near 0 and far from it, exact inverse, change of density, on every backend of the CPU."""

import math

import pytest
import torch
from backends import cpu_backends
from bijections import assert_inverts, assert_log_det
from oracles import LAYOUTS, assert_same_bits_on_any_threads, assert_three_way, relayout
from torch.autograd import gradcheck, gradgradcheck

from fastflow._backend import backend as forced_backend
from fastflow.nn import SymLog
from fastflow.ops import sym_log
from fastflow.ops.sym_log import _backward, _forward, reference

backend = cpu_backends(_forward, _backward)


def formulas(x, log_det, inverse):
    """As a user of PyTorch writes them."""
    size = x.abs() if inverse else x.abs().log1p()
    own = size.flatten(1).sum(1)
    return (x.sign() * size.expm1(), log_det + own) if inverse else (x.sign() * size, log_det - own)


def everything(function, x, log_det, inverse, weights):
    """Outputs and gradients by name."""
    x, log_det = x.detach().clone().requires_grad_(), log_det.detach().clone().requires_grad_()
    z, total = function(x, log_det=log_det, inverse=inverse)
    grads = torch.autograd.grad((z, total), (x, log_det), (weights[0].to(z.dtype), weights[1].to(total.dtype)))
    return {"z": z, "log_det": total, "grad_x": grads[0], "grad_log_det": grads[1]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(37, 5), (5, 601), (3, 7, 19), (3, 6, 5, 4), (2, 3, 3, 2, 5), (9, 1, 9, 9)], ids=str)
def test_kernels(backend, shape, dtype, layout):
    for size, inverse in ((1.0, False), (1e4, False), (2.0, True)):
        x = (size * torch.randn(shape)).to(dtype)
        log_det = torch.randn(shape[0]).to(torch.float64 if dtype == torch.float64 else torch.float32)
        weights = torch.randn(shape).to(dtype).float(), torch.randn(shape[0])

        def compute(of, inverse=inverse, x=x, log_det=log_det, weights=weights):
            wide = torch.float64 if of == torch.float64 else torch.float32
            return everything(formulas, x.to(of), log_det.to(wide), inverse, weights)

        truth, single = compute(torch.float64), compute(torch.float32)
        if dtype == torch.float64:  # eager's rounding is float32's, 2^-29 times as large, and the truth has as much
            single = {name: truth[name] + (single[name].double() - truth[name]) * 2.0**-28 for name in truth}
        moved = relayout(x, layout)
        found = everything(sym_log, moved, relayout(log_det, "strided"), inverse, weights)
        for name, value in found.items():
            assert_three_way(value, single[name].to(value.dtype), truth[name], name=f"{name}, size {size} {inverse}")
        z = sym_log(moved, inverse=inverse)[0]
        assert z.stride() == (torch.empty_like(moved) if backend != "reference" else z).stride()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_relative_precision_of_every_element(backend, dtype, inverse):
    x = 2.0 ** torch.empty(5, 300, dtype=torch.float64).uniform_(-100, 6 if inverse else 100)
    x = (x * torch.randn(5, 300).sign()).to(dtype)
    truth, _ = reference(x.double(), None, inverse)
    error = (sym_log(x, inverse=inverse)[0].double() - truth).abs() / truth.abs()
    assert error.max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_extremes(backend, dtype):
    """Zeros, subnormal, huge and infinite values and NaN, as the reference has them, gradients too."""
    info, inf = torch.finfo(dtype), math.inf
    tiny, subnormal = info.tiny, info.tiny / 4
    sizes = torch.tensor([0.0, subnormal, tiny, 1.0, info.max / 3, info.max, inf, math.nan], dtype=dtype)
    latents = torch.tensor([0.0, subnormal, tiny, 1.0, 87.5, 1e4, inf, math.nan], dtype=dtype)
    for inverse, size in ((False, sizes), (True, latents)):
        x = torch.stack([size, -size]).T.repeat(1, 11)  # a row for each, so that sums stay apart
        weights = torch.full_like(x, 0.5), torch.full((len(x),), 0.25, dtype=dtype)
        found = everything(sym_log, x, torch.zeros(len(x), dtype=dtype), inverse, weights)
        with forced_backend("reference"):
            expected = everything(sym_log, x, torch.zeros(len(x), dtype=dtype), inverse, weights)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], equal_nan=True, rtol=8 * info.eps, atol=0)
        if backend != "triton":  # whose -0 becomes 0
            assert torch.equal(found["z"][:-1].signbit(), x[:-1].signbit())


@pytest.mark.parametrize("inverse", [False, True])
def test_slope_at_zero(backend, inverse):
    """1 through z; of log_det, which has a corner there, 0."""
    grads = everything(sym_log, torch.tensor([[0.0, -0.0]]), torch.zeros(1), inverse,
                       (torch.tensor([[3.0, 5.0]]), torch.tensor([7.0])))
    assert grads["grad_x"].tolist() == [[3.0, 5.0]]


def test_many_threads_give_the_same_bits():
    x = torch.randn(3001, 70)
    assert_same_bits_on_any_threads(lambda: everything(sym_log, x, torch.zeros(3001), False, (x, x[:, 0])).values())


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("shape", "layout"), [((4, 6), "contiguous"), ((3, 6, 4, 5), "channels_last"),
                                               ((5, 3, 7), "strided"), ((0, 4), "contiguous")])  # fmt: skip
def test_opcheck(shape, layout, inverse):
    x = torch.randn(shape)
    x = relayout(x, layout) if x.numel() else x
    torch.library.opcheck(torch.ops.fastflow.sym_log.default, (x, torch.randn(shape[0]), inverse))
    torch.library.opcheck(torch.ops.fastflow.sym_log_backward.default,
                          (torch.randn(shape), torch.randn(shape[0]), x, inverse))


def test_compiles_into_one_graph():
    torch.compiler.reset()
    x, weights = torch.randn(4, 6, 3), (torch.randn(4, 6, 3), torch.randn(4))
    compiled = torch.compile(sym_log, fullgraph=True, backend="aot_eager")
    expected = everything(sym_log, x, torch.zeros(4), False, weights)
    for name, value in everything(compiled, x, torch.zeros(4), False, weights).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("inverse", [False, True])
def test_first_and_second_derivatives(backend, inverse):
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x: sym_log(x, inverse=inverse), (x,))
    assert gradgradcheck(lambda x: sym_log(x, inverse=inverse), (x,))


def test_torch_func():
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    per_sample = torch.vmap(torch.func.grad(lambda row: sym_log(row[None])[1].sum()))(x.detach())
    (expected,) = torch.autograd.grad(sym_log(x)[1].sum(), x)
    torch.testing.assert_close(per_sample, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inverts(dtype):
    assert_inverts(SymLog(), 3 * torch.randn(3, 2, 7, 7, dtype=dtype))


def test_log_det_is_the_jacobian():
    assert_log_det(SymLog(), torch.randn(2, 5, dtype=torch.float64))


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    z, log_det = SymLog()(torch.randn(rows, 3))
    assert z.shape == (rows, 3)
    assert log_det.shape == (rows,)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"sym_log: x has dtype torch\.uint8"):
        sym_log(torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="sym_log: x has shape"):
        sym_log(torch.randn(3))
    with pytest.raises(ValueError, match=r"sym_log: log_det has shape \(3,\), expected \(2,\)"):
        sym_log(torch.randn(2, 3), log_det=torch.zeros(3))
