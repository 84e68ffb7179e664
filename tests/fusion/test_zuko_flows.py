"""What is left of zuko, fused, against the originals: maps of single features, densities, compositions, whole flows."""

import copy
import pickle
from functools import partial

import pytest
import torch
from agreement import assert_agrees, assert_keeps, compare, leaves, perturbed
from oracles import relayout
from peers import zuko
from torch._dynamo.testing import CompileCounterWithBackend

from fastflow.fusion import fuse
from fastflow.fusion.swap import survey

D, C = 5, 3
t, lazy = zuko.transforms, zuko.lazy
ADDITIVE = {"univariate": t.AdditiveTransform, "shapes": [()]}


def element_wise(**options):
    return perturbed(zuko.flows.ElementWiseTransform(D, C, hidden_features=(8,), **options))


def gmm(kind="diagonal", tied=False, **options):
    mixture = zuko.mixtures.GMM(D, components=3, covariance_type=kind, tied=tied, **options)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.mul_(0.5)
    return mixture


def diagonal_normal(**options):
    return lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.randn(D), 0.5 + torch.rand(D), **options)


def forward(layer, x, *context):
    return layer(*context).call_and_ladj(x)


def inverse(layer, x, *context):
    return layer(*context).inv.call_and_ladj(x)


def inverse_of_the_inverse(layer, x, *context):
    transform = layer(*context).inv
    y = transform(x)
    return y, transform.log_abs_det_jacobian(x, y), *transform.inv.call_and_ladj(x), *transform.inv.inv(x)


def log_prob(layer, x, *context):
    return layer(*context).log_prob(x)


@pytest.mark.parametrize("call", [forward, inverse, inverse_of_the_inverse])
@pytest.mark.parametrize(("shape", "context"), [((17,), (17,)), ((17,), ()), ((), ()), ((3, 4), (4,)),
                                                ((3, 4), (3, 1))])
@pytest.mark.parametrize("options", [{}, {"univariate": partial(t.MonotonicAffineTransform, slope=0.1)}])
def test_element_wise_agrees(options, shape, context, call):
    assert_agrees(element_wise(**options), call, torch.randn(*shape, D), torch.randn(*context, C))


def test_element_wise_of_few_rows():
    layer = element_wise()
    assert_agrees(layer, forward, torch.randn(1, D), torch.randn(1, C))
    z, log_det = forward(fuse(layer), torch.randn(0, D), torch.randn(0, C))  # which the original refuses
    assert z.shape == (0, D)
    assert log_det.shape == (0,)


def test_element_wise_keeps_everything_else():
    original, x, c = element_wise(), torch.randn(17, D), torch.randn(17, C)
    assert_keeps(original, forward, x, c)
    theirs, ours = original(c), fuse(copy.deepcopy(original))(c)
    for mine, other in ((ours, theirs), (ours.inv, theirs.inv)):
        assert isinstance(mine, type(other))
        assert repr(mine) == repr(other)
        assert repr(mine.domain) == repr(other.domain)
        assert repr(mine.codomain) == repr(other.codomain)
        assert mine.bijective == other.bijective
    with pytest.raises(AttributeError, match="phi"):
        fuse(copy.deepcopy(original))()
    with pytest.raises(ValueError, match=r"ElementWiseTransform: x has shape \(6,\), expected \(\.\.\., 5\)"):
        ours(torch.randn(6))


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: zuko.flows.ElementWiseTransform(D), "its parameters are of its own"),
    (lambda: element_wise(**ADDITIVE), "its univariate transform is AdditiveTransform"),
    (lambda: gmm("full"), "its covariances are full"),
    (lambda: gmm(context=2), "its parameters are those of a context"),
    (lambda: lazy.UnconditionalDistribution(zuko.distributions.BoxUniform, torch.zeros(D), torch.ones(D)),
     "its distribution is BoxUniform"),
    (lambda: diagonal_normal(ndims=0), "its ndims is not 1"),
    (lambda: lazy.LazyComposedTransform(), "it has no transforms")])
def test_refusals(make, reason):
    (found,) = survey(fuse(make()))
    assert found.reason.startswith(reason)


DENSITIES = [partial(gmm, kind, tied) for kind in ("diagonal", "spherical") for tied in (False, True)]
DENSITIES += [diagonal_normal, partial(diagonal_normal, buffer=True)]


@pytest.mark.parametrize("shape", [(17,), (1,), (), (3, 4)], ids=str)
@pytest.mark.parametrize("make", DENSITIES)
def test_densities_agree(make, shape):
    torch.manual_seed(1)  # of a scale that all share the gradient is one number, and the original's error of it luck
    assert_agrees(make(), log_prob, torch.randn(*shape, D))


@pytest.mark.parametrize("make", DENSITIES)
def test_densities_of_any_strides_and_of_nothing(make):
    assert_agrees(make(), log_prob, relayout(torch.randn(3, 4, D), "strided"))
    for shape in ((0,), (3, 0)):  # where the original cannot infer a shape
        x = torch.randn(*shape, D, requires_grad=True)
        density = log_prob(fuse(make()), x)
        assert density.shape == shape
        assert torch.autograd.grad(density.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("batch", [(4,), (3, 4), (3, 1)])
@pytest.mark.parametrize("make", [gmm, diagonal_normal])
def test_expanded_densities_agree(make, batch):
    assert_agrees(make(), lambda layer, x: layer().expand(batch).log_prob(x), torch.randn(3, 4, D))


@pytest.mark.parametrize("make", [gmm, diagonal_normal])
def test_distributions_keep_everything_else(make):
    original, x = make(), torch.randn(17, D)
    assert_keeps(original, log_prob, x)
    theirs, ours = original(), fuse(copy.deepcopy(original))()
    for mine, other in ((ours, theirs), (ours.expand((4,)), theirs.expand((4,)))):
        assert isinstance(mine, type(other))
        assert repr(mine) == repr(other)
        assert mine.batch_shape == other.batch_shape
        assert mine.event_shape == other.event_shape
        drawn = []
        for each in (mine, other):
            torch.manual_seed(0)
            drawn.append(each.sample((6,)))
        assert torch.equal(*drawn)
    assert torch.equal(pickle.loads(pickle.dumps(ours)).log_prob(x), ours.log_prob(x))


@pytest.mark.parametrize("make", [gmm, diagonal_normal])
def test_transforms_of_densities(make):
    original = make().double()
    fused, x = fuse(copy.deepcopy(original)), torch.randn(6, D, dtype=torch.float64)
    tangent = torch.randn_like(x)
    for transformed in (lambda layer: torch.func.vmap(lambda row: log_prob(layer, row))(x),
                        lambda layer: torch.func.jvp(lambda x: log_prob(layer, x), (x,), (tangent,)),
                        lambda layer: torch.func.vmap(torch.func.grad(lambda row: log_prob(layer, row)))(x)):
        torch.testing.assert_close(transformed(fused), transformed(original))


def flow(kind):
    options = {"hidden_features": (8,), "transforms": 2}
    if kind == "NICE":
        return perturbed(zuko.flows.NICE(D, **ADDITIVE, **options))
    if kind == "conditional RealNVP":
        return perturbed(zuko.flows.RealNVP(D, C, randmask=True, **options))
    couplings = zuko.flows.RealNVP(D, **options)
    if kind == "RealNVP":
        return perturbed(couplings)
    linear = [lazy.UnconditionalTransform(t.LULinearTransform, torch.eye(D) + 0.2 * torch.randn(D, D)),
              lazy.UnconditionalTransform(t.RotationTransform, torch.randn(D, D)),
              lazy.UnconditionalTransform(t.PermutationTransform, torch.randperm(D), buffer=True)]
    first, last = couplings.transform.transforms
    return perturbed(lazy.Flow([first, *linear, last.inv, zuko.flows.ElementWiseTransform(D)], gmm()))


FLOWS = ("RealNVP", "conditional RealNVP", "NICE", "mixed")


def context_of(kind, *shape):
    return (torch.randn(*shape, C),) if kind.startswith("conditional") else ()


def everything(module, x, *context):
    """All that a flow computes for x."""
    flow = module(*context)
    back = flow.transform.inv
    return (flow.log_prob(x), *flow.transform.call_and_ladj(x), *back.call_and_ladj(x), flow.transform(x), back(x),
            flow.transform.log_abs_det_jacobian(x, x), *back.inv.call_and_ladj(x))


@pytest.mark.parametrize("kind", FLOWS)
def test_flows_agree(kind):
    assert_agrees(flow(kind), everything, torch.randn(17, D), *context_of(kind, 17))
    assert_agrees(flow(kind), everything, torch.randn(3, 4, D), *context_of(kind, 4))


@pytest.mark.parametrize("kind", FLOWS)
def test_samples_are_the_originals(kind):
    original = flow(kind).double()
    fused, context = fuse(copy.deepcopy(original)), tuple(each.double() for each in context_of(kind, 4))
    drawn = []
    for module in (fused, original):
        torch.manual_seed(0)
        made = module(*context)
        drawn.append([made.sample((6,)), *leaves([made.rsample_and_log_prob((2, 3)) if kind != "mixed" else ()])])
    compare(drawn[0], drawn[1], drawn[1], "draw")


def test_compositions_keep_what_is_known_of_them():
    original = flow("mixed").transform
    theirs, ours = original(), fuse(copy.deepcopy(original))()
    for mine, other in ((ours, theirs), (ours.inv, theirs.inv)):
        assert isinstance(mine, type(other))
        assert repr(mine) == repr(other)
        assert (mine.domain_dim, mine.codomain_dim) == (other.domain_dim, other.codomain_dim)
        assert mine.event_dim == other.event_dim
        assert mine.bijective == other.bijective
        assert mine.forward_shape((4, D)) == other.forward_shape((4, D))


@pytest.mark.parametrize("transforms", [
    [t.ExpTransform], [t.ExpTransform, t.SoftclipTransform], [partial(t.ReshapeTransform, (6,), (2, 3))],
    [t.ExpTransform, partial(t.ReshapeTransform, (6,), (2, 3)), t.SigmoidTransform],
    [partial(t.ReshapeTransform, (6,), (2, 3)), partial(t.ReshapeTransform, (2, 3), (3, 2)), t.ExpTransform]])
def test_compositions_of_any_event_dims(transforms):
    """Unknown transforms are composed as they were, also those of more or fewer dims."""
    original = lazy.LazyComposedTransform(*(lazy.UnconditionalTransform(each) for each in transforms))
    theirs, x = original(), torch.randn(4, 6)
    ours = fuse(original)()
    assert type(ours) is not type(theirs)
    assert (ours.domain_dim, ours.codomain_dim) == (theirs.domain_dim, theirs.codomain_dim)
    torch.testing.assert_close(ours.call_and_ladj(x), theirs.call_and_ladj(x))


def compiled(module, x, *context):
    made = module(*context)
    shape = () if context else x.shape[:1]
    return made.log_prob(x), made.transform.inv(x), made.sample(shape), *made.rsample_and_log_prob(shape)


@pytest.mark.parametrize("kind", FLOWS)
def test_one_graph(kind):
    """torch.compile takes all of a fused flow, in training, by one graph for batches of any size. (Of many rows the
    inverse of a linear map is another graph.)"""
    module = fuse(flow(kind))
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(lambda *given: compiled(module, *given), fullgraph=True, backend=counter)
    for rows in (11, 17):
        x, context, results = torch.randn(rows, D), context_of(kind, rows), []
        for each in (x, *context):
            torch._dynamo.mark_dynamic(each, 0)
        for each in (run, partial(compiled, module)):
            torch.manual_seed(0)
            outputs = each(x, *context)
            total = sum(value.sum() for value in outputs if value.requires_grad)
            results.append([*outputs, *torch.autograd.grad(total, list(module.parameters()), allow_unused=True)])
        for one, other in zip(*results, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", FLOWS)
def test_autocast_gives_float32(kind):
    module, x, context = fuse(flow(kind)), torch.randn(17, D), context_of(kind, 17)
    with torch.autocast("cpu", torch.bfloat16):
        results = everything(module, x, *context)
    assert {each.dtype for each in results} == {torch.float32}


@pytest.mark.parametrize("kind", FLOWS)
def test_transforms_of_whole_flows(kind):
    original = flow(kind).double()
    given = [each.double() for each in (torch.randn(6, D), *context_of(kind, 6))]
    tangents = [torch.randn_like(each) for each in given]
    results = [[torch.func.vmap(partial(log_prob, module))(*given),
                *torch.func.jvp(partial(log_prob, module), tuple(given), tuple(tangents))]
               for module in (fuse(copy.deepcopy(original)), original)]
    torch.testing.assert_close(*results)
