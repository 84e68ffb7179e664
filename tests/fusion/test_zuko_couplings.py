"""Couplings of zuko, fused, against the originals."""

import copy
import math
import pickle
import re
from functools import partial

import pytest
import torch
from agreement import assert_agrees, assert_keeps, perturbed
from oracles import LAYOUTS, relayout
from peers import zuko
from torch import nn

from fastflow.fusion import fuse, unfuse
from fastflow.fusion.swap import survey

D = 5
Coupling, Affine = zuko.flows.GeneralCouplingTransform, zuko.transforms.MonotonicAffineTransform
ADDITIVE = {"univariate": zuko.transforms.AdditiveTransform, "shapes": [()]}
STEEP = {"univariate": partial(Affine, slope=1e-5)}
MASKS = {"odd": None, "even": [True, False, True, False, True], "half": [True, True, False, False, False],
         "mixed": [False, True, True, False, True], "one": [False, False, False, True, False]}


def coupling(context=0, hidden_features=(16,), **options):
    return perturbed(Coupling(D, context, hidden_features=hidden_features, **options))


def forward(layer, x, *context):
    return layer(*context).call_and_ladj(x)


def inverse(layer, x, *context):
    return layer(*context).inv.call_and_ladj(x)


def one_by_one(layer, x, *context):
    """The same results by the other methods of a transform."""
    transform = layer(*context)
    z, y = transform(x), transform.inv(x)
    return z, transform.log_abs_det_jacobian(x, z), y, transform.inv.log_abs_det_jacobian(x, y), transform.inv.inv(x)


CALLS = (forward, inverse, one_by_one)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [{}, STEEP, {"univariate": partial(Affine, slope=30.0)}, ADDITIVE],
                         ids=["affine", "steep", "slope over 1", "additive"])
def test_agrees(options, mask, call):
    assert_agrees(coupling(mask=MASKS[mask], **options), call, torch.randn(17, D))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("shape", "context"), [((17,), None), ((17,), (17,)), ((17,), ()), ((), None), ((), ()),
                                                ((1,), (1,)), ((3, 4), None), ((3, 4), (4,)), ((3, 4), (3, 1)),
                                                ((2, 3, 4), (3, 4)), ((2, 1, 4), None)])
def test_leading_dims_of_x_and_context(shape, context, call):
    if context is None:
        assert_agrees(coupling(), call, torch.randn(*shape, D))
    else:
        assert_agrees(coupling(2), call, torch.randn(*shape, D), torch.randn(*context, 2))


@pytest.mark.parametrize("call", [forward, inverse])
@pytest.mark.parametrize(("shape", "context"), [((), (7,)), ((1,), (7,)), ((4,), (3, 1)), ((4, 1), (3, 1, 2))])
def test_context_of_more_dims_than_x(shape, context, call):
    """The original fails there; it agrees on an x that was expanded first."""
    layer = fuse(coupling(2))
    x, c = torch.randn(*shape, D), torch.randn(*context, 2)
    leading = torch.broadcast_shapes(shape, context)
    for mine, expected in zip(call(layer, x, c), call(unfuse(copy.deepcopy(layer)), x.expand(*leading, D), c),
                              strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("options", [{}, ADDITIVE], ids=["affine", "additive"])
def test_few_rows(options, rows, call):
    original = coupling(2, **options)
    x, c = torch.randn(rows, D), torch.randn(rows, 2)
    if rows:
        assert_agrees(original, call, x, c)
        return
    results = call(fuse(original), x.requires_grad_(), c)  # of which the original cannot infer a shape
    assert [each.shape for each in results] == [each.shape for each in call(fuse(original), torch.zeros(0, D), c)]
    assert all(each.shape[0] == 0 for each in results)
    (gradient,) = torch.autograd.grad(sum(each.sum() for each in results), x)
    assert gradient.shape == (0, D)


@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each != "channels_last"])
@pytest.mark.parametrize("mask", MASKS)
def test_layouts(mask, layout):
    original = coupling(2, mask=MASKS[mask])
    assert_agrees(original, forward, relayout(torch.randn(17, D), layout), relayout(torch.randn(17, 2), layout))
    assert_agrees(original, inverse, relayout(torch.randn(4, 3, D), layout), torch.randn(4, 3, 2).mT.contiguous().mT)


@pytest.mark.parametrize("options", [{"activation": nn.ELU}, {"normalize": True}, {"hidden_features": ()}])
def test_any_conditioner(options):
    assert_agrees(coupling(2, **options), forward, torch.randn(17, D), torch.randn(17, 2))


def test_the_conditioner_gets_what_it_got():
    layer, shapes = coupling(2), []
    layer.hyper.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    x, c = torch.randn(3, 4, D), torch.randn(4, 2)
    for module in (layer, fuse(copy.deepcopy(layer))):
        module(c)(x)
        module()  # builds, and calls nothing
    assert shapes[0] == shapes[1]
    assert len(shapes) == 2


def test_one_evaluation_of_the_conditioner():
    flow, calls = fuse(zuko.flows.RealNVP(D, transforms=3, hidden_features=(8,))), []
    for layer in flow.transform.transforms:
        layer.hyper.register_forward_hook(lambda *_: calls.append(1))
    flow().rsample_and_log_prob((7,))
    assert len(calls) == 3
    flow().transform.inv.call_and_ladj(torch.randn(7, D))
    assert len(calls) == 6


@pytest.mark.parametrize("options", [{}, STEEP, ADDITIVE], ids=["affine", "steep", "additive"])
def test_keeps_everything_else(options):
    assert_keeps(coupling(2, **options), forward, torch.randn(17, D), torch.randn(17, 2))


def test_keeps_what_is_known_of_a_transform():
    original = coupling(2)
    context, x = torch.randn(2), torch.randn(3, D)
    theirs, ours = original(context), fuse(copy.deepcopy(original))(context)
    for mine, other in ((ours, theirs), (ours.inv, theirs.inv)):
        assert isinstance(mine, type(other))
        assert type(mine).__name__ == type(other).__name__
        assert repr(mine) == repr(other)
        assert mine.bijective == other.bijective
        assert mine.event_dim == other.event_dim
        assert mine.domain is other.domain
        assert mine.codomain is other.codomain
        assert mine.forward_shape(x.shape) == mine.inverse_shape(x.shape) == x.shape
        with pytest.raises(NotImplementedError):
            mine.sign  # noqa: B018
        with pytest.raises(NotImplementedError):
            mine.with_cache()
    assert ours.inv is ours.inv
    assert ours.inv.inv is ours
    assert ours == ours
    assert ours != fuse(copy.deepcopy(original))(context)
    assert torch.equal(ours.idx_a, theirs.idx_a)
    assert torch.equal(ours.idx_b, theirs.idx_b)
    assert repr(ours.meta(x[:, ours.idx_a])) == repr(theirs.meta(x[:, theirs.idx_a]))


def test_the_functional_transform_can_be_copied_and_pickled():
    transform, x = fuse(coupling())(), torch.randn(3, D)
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert type(other) is type(transform)
        assert torch.equal(other(x), transform(x))


def test_a_loaded_mask_is_the_one_that_is_used():
    first, second = coupling(mask=MASKS["half"]), coupling(mask=[False, True, False, False, True])
    fused = fuse(first)
    fused.load_state_dict(second.state_dict())
    x = torch.randn(3, D)
    torch.testing.assert_close(fused().call_and_ladj(x), second().call_and_ladj(x))


@pytest.mark.parametrize("options", [{}, ADDITIVE], ids=["affine", "additive"])
def test_autocast_leaves_float32_alone(options):
    layer, x, c = fuse(coupling(2, **options)), torch.randn(17, D), torch.randn(17, 2)
    expected = forward(layer, x, c)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = forward(layer, x, c)
        back, log_det_back = inverse(layer, z, c)
    assert {each.dtype for each in (z, log_det, back, log_det_back)} == {torch.float32}
    torch.testing.assert_close((z, log_det), expected, rtol=0.1, atol=0.1)  # the conditioner runs in bfloat16
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det_back, -log_det)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("options", [{}, ADDITIVE], ids=["affine", "additive"])
def test_transforms_of_functions(options, call):
    original = coupling(2, mask=MASKS["mixed"], **options)
    fused, x, c = fuse(copy.deepcopy(original)), torch.randn(6, D), torch.randn(6, 2)
    tangents = torch.randn_like(x), torch.randn_like(c)
    for transformed in (lambda layer: torch.func.vmap(lambda *row: call(layer, *row))(x, c),
                        lambda layer: torch.func.jvp(lambda *given: call(layer, *given), (x, c), tangents),
                        lambda layer: torch.func.vmap(torch.func.jacrev(lambda row: call(layer, row, c[0])))(x)):
        torch.testing.assert_close(transformed(fused), transformed(original))


def test_gradients_of_every_row_by_vmap():
    original = zuko.flows.RealNVP(D, hidden_features=(8,))
    x, found = torch.randn(4, D), []
    for flow in (original, fuse(copy.deepcopy(original))):
        def loss(parameters, row, flow=flow):
            return torch.func.functional_call(_Density(flow), parameters, (row,))

        gradients = torch.func.grad(loss)
        found.append(torch.func.vmap(gradients, (None, 0))(dict(_Density(flow).named_parameters()), x))
    torch.testing.assert_close(*found)


class _Density(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow().log_prob(x)


def test_wrong_features():
    layer = fuse(coupling())
    with pytest.raises(ValueError, match=r"GeneralCouplingTransform: x has shape \(3, 6\), expected \(\.\.\., 5\)"):
        layer()(torch.randn(3, 6))


class _Lookalike(zuko.transforms.MonotonicAffineTransform):
    def _call(self, x):
        return x * self.scale - self.shift


@pytest.mark.parametrize(("options", "reason"), [
    ({"univariate": _Lookalike}, "its univariate transform is _Lookalike"),
    ({"univariate": lambda *phi: Affine(*phi)}, "its univariate transform is <lambda>"),
    ({"univariate": partial(Affine, slope=1.0)}, "its univariate transform is functools.partial"),
    ({"univariate": partial(Affine, slope=torch.tensor(0.1))}, "its univariate transform is functools.partial"),
    ({"univariate": partial(Affine, cache_size=1)}, "its univariate transform is functools.partial"),
    ({"univariate": zuko.transforms.MonotonicRQSTransform, "shapes": [(4,), (4,), (3,)]}, "MonotonicRQSTransform"),
    ({"shapes": [(1,), (1,)]}, r"its shapes are \[\(1,\), \(1,\)\], expected \[\(\), \(\)\]")])
def test_refusals(options, reason):
    layer = Coupling(D, **options)
    (found,) = survey(fuse(layer))
    assert re.search(reason, found.reason)
    assert type(layer) is Coupling


def test_slopes_without_a_scale_are_left():
    for slope in (0.0, -1.0, math.inf, math.nan):
        assert survey(Coupling(D, univariate=partial(Affine, slope=slope)))[0].reason
