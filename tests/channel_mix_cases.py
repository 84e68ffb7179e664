"""What every kernel of channel_mix must do. A file that imports these tests has a fixture `backend` that forces one."""

import pytest
import torch
from oracles import LAYOUTS, assert_three_way, relayout

from fastflow.ops.channel_map import ChannelMap
from fastflow.ops.channel_mix import map_channels
from fastflow.ops.packing import empty_channels

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# shape, channels of x where there is a rest (else 0), channels of z where there is a z_rest (else 0)
CASES = [
    ((37, 1), 0, 0), ((37, 3), 2, 1), ((33, 64), 0, 0), ((19, 64), 3, 40), ((5, 8, 31), 0, 2), ((3, 24, 9), 5, 17),
    ((3, 2, 7, 7), 1, 0), ((5, 12, 7, 7), 0, 0), ((2, 24, 4, 6), 12, 12), ((2, 64, 3, 5), 33, 1),
    ((2, 12, 2, 3, 4), 7, 5), ((2, 48, 1, 2, 3), 0, 0),
]  # fmt: skip


def make(shape, dtype):
    """x, log_det, the map in float64 but of values that the compute dtype has, and gradients of z and log_det."""
    channels, wide = shape[1], torch.promote_types(dtype, torch.float32)
    given = torch.randn(channels, channels), torch.randn(channels), torch.randn(())
    given = ChannelMap(*(part.to(wide).double() for part in given))
    return (torch.randn(shape).to(dtype), torch.randn(shape[0]).to(wide), given,
            (torch.randn(shape).to(dtype), torch.randn(shape[0]).to(wide)))


def formula(x, given, log_det, split):
    """As a user of PyTorch writes it, on one tensor."""
    matrix, shift, log_abs_det = (part.to(x.dtype) for part in given)
    z = torch.einsum("ij,bj...->bi...", matrix, x) + shift.view(-1, *[1] * (x.dim() - 2))
    return z, log_det + log_abs_det * x[0, 0].numel()


def everything(function, x, given, log_det, split, weights):
    """Outputs and gradients by name; x and the gradient of z are tensors or pairs of them."""
    leaves = [tensor.detach().requires_grad_() for tensor in (*_pair(x), *given, log_det)]
    *x_leaves, matrix, shift, own, log_det = leaves
    z, total = function(tuple(x_leaves) if isinstance(x, tuple) else x_leaves[0], ChannelMap(matrix, shift, own),
                        log_det, split)
    z, grad_z = _pair(z), _pair(weights[0])
    *grad_x, matrix, shift, own, grad_log_det = torch.autograd.grad([*z, total], leaves, [*grad_z, weights[1]])
    return {"z": torch.cat(z, 1), "log_det": total, "grad_x": torch.cat(grad_x, 1), "grad_matrix": matrix,
            "grad_shift": shift, "grad_log_abs_det": own, "grad_log_det": grad_log_det}


def _pair(x):
    return x if isinstance(x, tuple) else (x,)


def parts(x, first, layout, other):
    """x as it is, or cut into a pair, in these layouts."""
    return (relayout(x[:, :first], layout), relayout(x[:, first:], other)) if first else relayout(x, layout)


def check(computed, x, given, log_det, weights, where=""):
    """In the three-way rule; sums over pixels are measured by their terms."""
    def compute(dtype):
        cast = [part.to(dtype) for part in given]
        return everything(formula, x.to(dtype), cast, log_det.to(dtype), 0, [weight.to(dtype) for weight in weights])

    truth, single = compute(torch.float64), compute(torch.float32)
    if x.dtype == torch.float64:  # eager's rounding is float32's, 2^-29 times as large, and the truth has as much
        single = {name: truth[name] + (single[name].double() - truth[name]) * 2.0**-28 for name in truth}
    g, v = (tensor.double().abs().transpose(0, 1).flatten(1) for tensor in (weights[0], x))
    terms = {"grad_matrix": g @ v.T, "grad_shift": g.sum(1),
             "grad_log_abs_det": weights[1].double().abs().sum() * x[0, 0].numel()}
    for name, value in computed.items():
        stored = name in ("z", "grad_x")
        eager = single[name].to(x.dtype) if stored else single[name]
        dtype = x.dtype if stored else torch.promote_types(x.dtype, torch.float32)
        assert_three_way(value, eager, truth[name], dtype, name=f"{name} {where}", terms=terms.get(name))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "first", "split"), CASES, ids=str)
def test_kernels(backend, shape, first, split, dtype, layout):
    x, log_det, given, weights = make(shape, dtype)
    others = [LAYOUTS[LAYOUTS.index(layout) - i] for i in (1, 2, 3)]
    moved = parts(x, first, layout, others[0])
    moved_weights = parts(weights[0], split, others[1], others[2]), relayout(weights[1], "strided")
    moved_map = given._replace(matrix=relayout(given.matrix, "transposed"), shift=relayout(given.shift, "strided"))
    computed = everything(map_channels, moved, moved_map, relayout(log_det, "strided"), split, moved_weights)
    check(computed, x, given, log_det, weights, where=f"of x {layout}, {others}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "first", "split"), CASES, ids=str)
def test_results_are_laid_out_like_x(backend, shape, first, split, layout):
    x, log_det, given, _ = make(shape, torch.float32)
    x = parts(x, first, layout, "contiguous")
    z, _ = map_channels(x, given, log_det, split)
    if backend == "reference":
        return
    for part in _pair(z):
        assert part.stride() == empty_channels(_pair(x)[0], part.shape[1]).stride()


def test_without_shift_and_log_det(backend):
    x, _, given, _ = make((3, 6, 5, 5), torch.float32)
    plain = given._replace(shift=torch.zeros_like(given.shift))
    z, total = map_channels(x, plain._replace(shift=None))
    expected = map_channels(x, plain, torch.zeros(3))
    assert torch.equal(z, expected[0])
    assert torch.equal(total, expected[1])


@pytest.mark.parametrize("given_gradient", [0, 1, 2])
def test_results_that_nothing_depends_on(backend, given_gradient):
    """The gradient of one of z, z_rest, log_det alone is that with zeros for the others."""
    x, log_det, given, _ = make((4, 5, 3), torch.float32)
    leaves = x[:, :2].detach().requires_grad_(), x[:, 2:].detach().requires_grad_(), given.matrix.requires_grad_()
    given.log_abs_det.requires_grad_()
    z, total = map_channels(leaves[:2], given, log_det, split=1)
    results = *z, total
    weights = [torch.randn_like(result) * (i == given_gradient) for i, result in enumerate(results)]
    expected = torch.autograd.grad(results, leaves, weights, retain_graph=True)
    found = torch.autograd.grad(results[given_gradient], leaves, weights[given_gradient], materialize_grads=True)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_pixels_do_not_see_each_other(backend):
    """A pixel that is not finite leaves every other pixel's z and gradient as they were."""
    x, log_det, given, weights = make((3, 12, 7, 7), torch.float32)
    expected = everything(map_channels, x, given, log_det, 0, weights)
    poisoned = x.clone()
    poisoned[1, :, 3, 4] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e38]).repeat(3)
    bad = torch.zeros(x.shape, dtype=torch.bool)
    bad[1, :, 3, 4] = True
    found = everything(map_channels, poisoned, given, log_det, 0, weights)
    assert torch.equal(found["z"][~bad], expected["z"][~bad])
    assert found["z"][bad].isnan().all()
    assert torch.equal(found["grad_x"], expected["grad_x"])
    assert torch.equal(found["log_det"], expected["log_det"])


def test_same_bits_again(backend):
    x, log_det, given, weights = make((70, 24, 3, 3), torch.float32)
    first, second = (everything(map_channels, x, given, log_det, 0, weights) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3, 3), (3, 4, 0)], ids=str)
@pytest.mark.parametrize(("first", "split"), [(0, 0), (1, 3)])
def test_empty(backend, shape, first, split):
    x, log_det, given, weights = make(shape, torch.float32)
    x = (x[:, :first], x[:, first:]) if first else x
    weights = ((weights[0][:, :split], weights[0][:, split:]) if split else weights[0]), weights[1]
    found = everything(map_channels, x, given, log_det, split, weights)
    assert found["z"].shape == found["grad_x"].shape == shape
    assert torch.equal(found["log_det"], log_det)
    assert not found["grad_matrix"].any()
    assert not found["grad_shift"].any()
    assert torch.equal(map_channels(x, given, None, split)[1], torch.zeros(shape[0]))
