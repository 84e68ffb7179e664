"""Dequantisation and logit in one pass: what the two ops give one after the other, on every backend of the CPU."""

import math

import numpy as np
import pytest
import torch
from oracles import LAYOUTS, assert_same_bits_on_any_threads, assert_three_way, relayout

from fastflow._backend import backend as forced_backend
from fastflow.nn import Dequantize, DequantizeLogit, Logit, NoiseStream
from fastflow.ops import dequantize, dequantize_logit, logit, uniform_noise

KEY = {"seed": 0xFEDCBA9876543210, "step": 2**32 - 1}


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """The reference; the native library."""
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    if request.param == "cpu" and not registered("fastflow::dequantize_logit", "CPU"):
        pytest.skip("the native library is not built here")
    with forced_backend(request.param):
        yield request.param


def formulas(x, noise, levels, alpha, log=torch.log):
    """As a user of PyTorch writes them, in the dtype of the noise."""
    v = (x + noise) / levels
    p = (1 - alpha) * v + alpha / 2
    log_p, log_rest = log(p), log(1 - p)
    return log_p - log_rest, (math.log1p(-alpha) - log_p - log_rest).reshape(len(x), -1).sum(1)


def truth(x, noise, levels, alpha):
    """In extended precision: at the ends of [0, 1] a rounding of v in float64 is as large as that of the kernel."""
    exact = formulas(x.cpu().numpy(), noise.cpu().numpy().astype(np.longdouble), levels, alpha, np.log)
    return [torch.from_numpy(value.astype(np.float64)).to(x.device) for value in exact]


def check(x, levels, alpha, dtype, keyed):
    """Three-way, the noise being the same values."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    rows = 2**32 - 2 + torch.arange(len(x))
    key = {**KEY, "rows": rows} if keyed else {}
    z, log_det = dequantize_logit(x, levels=levels, alpha=alpha, dtype=dtype, **key)
    noise = uniform_noise(x.shape, rows=rows, **KEY) if keyed else torch.full(x.shape, 0.5)
    exact, eager = truth(x, noise, levels, alpha), formulas(x, noise.to(compute), levels, alpha)
    assert (z.dtype, log_det.dtype) == (dtype, compute)
    assert z.is_contiguous()
    assert_three_way(z, eager[0].to(dtype), exact[0], name="z")
    assert_three_way(log_det, eager[1], exact[1], name="log_det")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(37, 5), (5, 601), (3, 7, 19), (3, 6, 5, 4), (2, 3, 3, 2, 5), (9, 1, 9, 9)], ids=str)
def test_kernels(backend, shape, dtype, layout):
    for levels, alpha, keyed in ((256, 0.05, True), (17, 0.05, False), (256, 1e-6, True), (17, 0.0, True)):
        check(relayout(torch.randint(levels, shape, dtype=torch.uint8), layout), levels, alpha, dtype, keyed)


@pytest.mark.parametrize("x_dtype", [torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_every_integer_dtype(backend, x_dtype):
    levels = min(torch.iinfo(x_dtype).max + 1, 65536)
    for dtype in (torch.float32, torch.float64):
        check(torch.randint(levels, (5, 70), dtype=x_dtype), levels, 0.05, dtype, True)


def test_noise_that_rounds_to_the_next_level_reaches_the_end(backend):
    """(x + u) / levels is then 1 in float32, and z infinite without a contraction, as the two ops have it."""
    x, rows = torch.full((3, 5000), 65535), torch.arange(3)
    noise = uniform_noise(x.shape, rows=rows, **KEY)
    expected = logit(dequantize(x, noise, levels=65536), alpha=0.0)
    found = dequantize_logit(x, levels=65536, alpha=0.0, rows=rows, **KEY)
    assert expected[0].isinf().any()
    assert torch.equal(found[0].isinf(), expected[0].isinf())
    assert torch.equal(found[1], expected[1])
    for ours, theirs in zip(dequantize_logit(x, levels=65536, rows=rows, **KEY),
                            logit(dequantize(x, noise, levels=65536)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rows_may_be_cut_and_ordered_at_will(backend):
    x, rows = torch.randint(256, (13, 2, 9), dtype=torch.uint8), torch.randperm(13)
    z, log_det = dequantize_logit(x, levels=256, rows=rows, **KEY)
    order = torch.randperm(13)
    for part in order.split([4, 9]):
        ours = dequantize_logit(x[part], levels=256, rows=rows[part], **KEY)
        assert torch.equal(ours[0], z[part])
        torch.testing.assert_close(ours[1], log_det[part])


def test_log_det_runs_on(backend):
    x, before = torch.randint(17, (5, 4), dtype=torch.uint8), torch.randn(5, requires_grad=True)
    _, own = dequantize_logit(x, levels=17)
    z, log_det = dequantize_logit(x, levels=17, log_det=before)
    torch.testing.assert_close(log_det, before + own)
    log_det.sum().backward()
    assert torch.equal(before.grad, torch.ones(5))
    assert not z.requires_grad


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 2, 3)], ids=str)
@pytest.mark.parametrize("keyed", [False, True])
def test_nothing_to_do(backend, shape, keyed):
    key = {**KEY, "rows": torch.arange(shape[0])} if keyed else {}
    z, log_det = dequantize_logit(torch.zeros(shape, dtype=torch.uint8), levels=256, **key)
    assert z.shape == shape
    assert torch.equal(log_det, torch.zeros(shape[0]))


def test_many_threads_give_the_same_bits():
    x = torch.randint(256, (3001, 70), dtype=torch.uint8)
    assert_same_bits_on_any_threads(lambda: dequantize_logit(x, levels=256, rows=torch.arange(3001), **KEY))


@pytest.mark.parametrize(("shape", "layout"), [((4, 6), "contiguous"), ((3, 6, 4, 5), "channels_last"),
                                               ((5, 3, 7), "strided"), ((0, 4), "contiguous")])  # fmt: skip
def test_opcheck(shape, layout):
    x = torch.zeros(shape, dtype=torch.uint8)
    x = relayout(x, layout) if x.numel() else x
    for key in ((None, None, None), (torch.tensor(3), torch.tensor(4), torch.arange(shape[0]))):
        torch.library.opcheck(torch.ops.fastflow.dequantize_logit.default, (x, *key, 17, 0.05, torch.bfloat16))


def test_compiles_into_one_graph():
    torch.compiler.reset()
    x, rows, stream, plain = torch.randint(256, (4, 6, 3)), torch.arange(4), NoiseStream(seed=3), NoiseStream(seed=3)
    layer = DequantizeLogit(256)
    compiled = torch.compile(lambda x: layer(x, stream, rows), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        for mine, expected in zip(compiled(x), layer(x, plain, rows), strict=True):
            assert torch.equal(mine, expected)


def test_torch_func_uses_the_reference():
    x = torch.randint(17, (3, 2, 5))
    z, log_det = torch.vmap(lambda row: dequantize_logit(row[None], levels=17))(x)
    expected = dequantize_logit(x, levels=17)
    torch.testing.assert_close(z[:, 0], expected[0])
    torch.testing.assert_close(log_det[:, 0], expected[1])


def test_the_layer_is_the_two_layers():
    x, rows, layer = torch.randint(17, (4, 1, 8, 8)), torch.arange(4), DequantizeLogit(17, 0.1)
    stream, plain = NoiseStream(seed=6), NoiseStream(seed=6)
    for _ in range(2):
        z, log_det = layer(x, stream, rows, log_det=torch.ones(4))
        expected = Logit(0.1)(Dequantize(17)(x, plain.draw(x.shape, rows)), log_det=torch.ones(4))
        torch.testing.assert_close(z, expected[0])
        torch.testing.assert_close(log_det, expected[1])
        assert torch.equal(layer.inverse(z), x)
    assert torch.equal(layer(x)[0], layer(x)[0])
    assert repr(layer) == "DequantizeLogit(levels=17, alpha=0.1)"
    with pytest.raises(ValueError, match="DequantizeLogit: levels is 1, expected at least 2"):
        DequantizeLogit(1)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"x": torch.tensor([[17]])}, ValueError, "dequantize_logit: x has values from 17 to 17, expected 0 to 16 for 17"),
    ({"x": torch.rand(2, 3)}, TypeError, r"dequantize_logit: x has dtype torch\.float32, expected an integer"),
    ({"x": torch.zeros(2, 3).bool()}, TypeError, r"dequantize_logit: x has dtype torch\.bool"),
    ({"x": [1]}, TypeError, "dequantize_logit: x is list, expected a Tensor"),
    ({"x": torch.tensor([1])}, ValueError, r"dequantize_logit: x has shape \(1,\), expected 2 to 5 dims"),
    ({"levels": 1}, ValueError, "dequantize_logit: levels is 1, expected at least 2"),
    ({"alpha": 1.0}, ValueError, r"dequantize_logit: alpha is 1\.0, expected at least 0 and less than 1"),
    ({"dtype": torch.int64}, TypeError, r"dequantize_logit: dtype is torch\.int64, expected float64, float32"),
    ({"seed": 1}, TypeError, "dequantize_logit: rows is NoneType, expected a Tensor of global row indices"),
    ({"rows": torch.arange(2)}, ValueError, "dequantize_logit: rows is given and seed is None, expected both or"),
    ({"seed": 1, "rows": torch.arange(3)}, ValueError, r"dequantize_logit: rows has shape \(3,\), expected \(2,\)"),
    ({"seed": 1, "rows": torch.rand(2)}, TypeError, r"dequantize_logit: rows has dtype torch\.float32"),
    ({"log_det": torch.zeros(3)}, ValueError, r"dequantize_logit: log_det has shape \(3,\), expected \(2,\)"),
    ({"log_det": torch.zeros(2).double()}, TypeError, "dequantize_logit: log_det has dtype torch.float64"),
])
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        dequantize_logit(**{"x": torch.zeros(2, 3, dtype=torch.uint8), "levels": 17} | arguments)
