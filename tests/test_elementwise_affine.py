"""Element-wise affine map: parameters an element and a channel, its layer, its start from data, refusals.

That its kernels compute it is tests/test_act_norm.py's.
"""

import pytest
import torch
from bijections import assert_inverts, assert_log_det, scatter
from oracles import LAYOUTS, assert_three_way, relayout
from torch.autograd import gradcheck

from fastflow.bench.watching import watch
from fastflow.nn import ElementwiseAffine, FlowSequential
from fastflow.ops import elementwise_affine

SHAPES = [((4, 5), (5,)), ((3, 4, 7), (4,)), ((3, 4, 7), (4, 7)), ((2, 3, 4, 4), (3,)), ((2, 3, 4, 4), (3, 4, 4)),
          ((2, 2, 3, 2, 2), (2, 3, 2, 2)), ((0, 3, 2), (3, 2))]  # fmt: skip


@pytest.mark.parametrize(("shape", "each"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inverts(shape, each, dtype):
    assert_inverts(scatter(ElementwiseAffine(each).to(dtype)), torch.randn(shape, dtype=dtype))


@pytest.mark.parametrize("each", [(3,), (3, 2, 2)], ids=str)
def test_log_det_is_the_jacobian(each):
    assert_log_det(scatter(ElementwiseAffine(each).double()), torch.randn(2, 3, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("each", [(5, 3, 4), (5,)], ids=str)
def test_values(each, dtype, layout):
    x, shift, log_scale = torch.randn(6, 5, 3, 4).to(dtype), torch.randn(each), torch.randn(each)
    log_det = torch.randn(6)

    def formulas(x, shift, log_scale, log_det):
        if len(each) == 1:
            shift, log_scale = (value.view(5, 1, 1).expand(5, 3, 4) for value in (shift, log_scale))
        return x * log_scale.exp() + shift, log_det + log_scale.sum()

    truth = formulas(*(value.double() for value in (x, shift, log_scale, log_det)))
    eager = formulas(x.float(), shift, log_scale, log_det)
    moved_shift, moved_log_scale = (relayout(value, "strided") for value in (shift, log_scale))
    y, total = elementwise_affine(relayout(x, layout), moved_shift, moved_log_scale, log_det=log_det)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert_three_way(y, eager[0].to(dtype), truth[0], name="y")
    assert_three_way(total, eager[1], truth[1], name="log_det")


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("each", [(3,), (3, 2)], ids=str)
def test_gradients(each, inverse):
    given = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 2), each, each, 2))
    assert gradcheck(lambda *a: elementwise_affine(*a[:3], log_det=a[3], inverse=inverse), given)


def test_is_served_by_the_op_act_norm():
    with watch() as served:
        elementwise_affine(torch.randn(2, 3, 4), torch.randn(3, 4), torch.randn(3, 4))
    assert served.keys() == {"act_norm"}


@pytest.mark.parametrize(("shape", "each"), [((64, 3), 3), ((5, 3, 4, 4), (3,)), ((64, 3, 2, 2), (3, 2, 2))], ids=str)
def test_starts_from_data(shape, each):
    layer, x = ElementwiseAffine(each).double(), 5 + 3 * torch.randn(shape, dtype=torch.float64)
    assert torch.equal(layer(x)[0], x)
    layer.initialize(x)
    y = layer(x)[0]
    y = y.flatten(1) if len(layer.shape) > 1 else y.transpose(0, 1).flatten(1).T
    assert torch.allclose(y.mean(0), torch.zeros(y.shape[1], dtype=torch.float64), atol=1e-12)
    assert torch.allclose(y.std(0), torch.ones(y.shape[1], dtype=torch.float64), atol=1e-5)  # std + 1e-6 divides


def test_starts_once_and_the_start_survives_saving():
    layer, x = ElementwiseAffine((2, 3)), torch.randn(8, 2, 3)
    layer.initialize(x)
    loaded = ElementwiseAffine((2, 3))
    loaded.load_state_dict(layer.state_dict())
    loaded.initialize(x + 1)
    assert torch.equal(loaded.shift, layer.shift)


def test_refuses_to_start_from_an_element_without_variance():
    layer, x = ElementwiseAffine((2, 3)), torch.randn(8, 2, 3)
    x[:, 1, 1] = 0.5
    with pytest.raises(ValueError, match=r"zero variance in 1 of 6 channels \(4\)"):
        layer.initialize(x)
    assert not layer.initialized


@pytest.mark.parametrize("each", [(4,), (4, 2, 3)], ids=str)
def test_a_flow_takes_it_where_it_fits(each):
    FlowSequential([ElementwiseAffine(each)], (4, 2, 3))
    with pytest.raises(ValueError, match=r"layer 0 \(ElementwiseAffine\) does not fit .* its parameters have shape"):
        FlowSequential([ElementwiseAffine(each)], (3, 2, 4))


@pytest.mark.parametrize(("x", "shift", "log_scale", "error", "message"), [
    (torch.zeros(2), torch.zeros(2), torch.zeros(2), ValueError, "elementwise_affine: x has shape"),
    (torch.zeros(2, 3, 4), torch.zeros(4), torch.zeros(4), ValueError,
     r"elementwise_affine: shift has shape \(4,\), expected \(3, 4\) one an element of x, or \(3,\), one a channel"),
    (torch.zeros(2, 3, 4), torch.zeros(3), torch.zeros(3, 4), ValueError,
     r"elementwise_affine: log_scale has shape \(3, 4\), expected \(3,\) to match shift"),
    (torch.zeros(2, 3), [0.0], torch.zeros(3), TypeError, "elementwise_affine: shift is list"),
    (torch.zeros(2, 3).long(), torch.zeros(3), torch.zeros(3), TypeError, "elementwise_affine: x has dtype"),
])
def test_bad_arguments(x, shift, log_scale, error, message):
    with pytest.raises(error, match=message):
        elementwise_affine(x, shift, log_scale)


def test_bad_log_det():
    with pytest.raises(ValueError, match=r"elementwise_affine: log_det has shape \(3,\), expected \(2,\)"):
        elementwise_affine(torch.zeros(2, 3), torch.zeros(3), torch.zeros(3), log_det=torch.zeros(3))
