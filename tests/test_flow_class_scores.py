"""The flow head by pairs: the numbers of the repeated batch, a fraction of its memory; what goes which way, and why."""

import copy
import re

import pytest
import torch
from bijections import scatter
from functorch.compile import make_boxed_func
from oracles import LAYOUTS, assert_three_way, relayout
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import fastflow
from fastflow.bench.timing import peak_memory
from fastflow.models import conditional_flow
from fastflow.nn import (
    ActNorm,
    AffineCoupling,
    ChannelMix,
    FactorOut,
    FlowClassHead,
    FlowSequential,
    Permutation,
    ResidualMLP,
    Split,
)
from fastflow.ops import ScaleMap, class_pairs, flow_class_marginal, flow_class_scores

CLASSES = 3
SIGMOID = ScaleMap("sigmoid", bias=2.0, eps=1e-3, shift_first=True)


def _mix(features):
    generator = torch.Generator().manual_seed(features)
    weight = torch.linalg.qr(torch.randn(features, features, generator=generator, dtype=torch.float64)).Q
    return ChannelMix(features, weight=weight.float())


def _coupling(features, active="second", passive=None, blocks=1, scale_map=SIGMOID, classes=CLASSES, **options):
    split = Split.halves(active, passive)
    net = ResidualMLP(split.passive_channels(features), 2 * split.active_channels(features), 6, blocks, 0.0, classes)
    return AffineCoupling(net, split, scale_map, **options)


def _both(features, blocks=1):
    return [_coupling(features, "first", blocks=blocks), _coupling(features, "second", blocks=blocks)]


def _tied():
    coupling = _coupling(6)
    return FlowSequential([_mix(6), coupling, Permutation.reverse(6), coupling], (6,))


FLOWS = {
    "two levels": lambda: conditional_flow(8, CLASSES, levels=2, steps=2, hidden=6, blocks=1),
    "odd width, norm last": lambda: FlowSequential([ActNorm(7), _mix(7), *_both(7, 2), ActNorm(7)], (7,)),
    "one coupling a map, no blocks": lambda: FlowSequential(
        [_mix(5), _coupling(5, blocks=0), Permutation.reverse(5), _coupling(5, "first", blocks=0), ActNorm(5)], (5,)),
    "many couplings in a row": lambda: FlowSequential(
        [*_both(6), _coupling(6, "first"), _coupling(6, passive=2), _coupling(6, passive=2)], (6,)),
    "the same half twice": lambda: FlowSequential([ActNorm(6), _coupling(6), _coupling(6), _mix(6)], (6,)),
    "other scale maps": lambda: FlowSequential(
        [_mix(6), _coupling(6, scale_map=ScaleMap("tanh")), _coupling(6, "first", scale_map=ScaleMap("exp")),
         ActNorm(6), _coupling(6, scale_map=ScaleMap("softplus", eps=1e-2)),
         _coupling(6, "first", scale_map=ScaleMap("soft_clip", clamp=1.5, shift_first=True))], (6,)),
    "factor out last": lambda: FlowSequential([_coupling(8), FactorOut(), _mix(4), _coupling(4), FactorOut()], (8,)),
    "factor out twice": lambda: FlowSequential([*_both(12), FactorOut(), FactorOut(), ActNorm(2), *_both(2)], (12,)),
    "a coupling without the class": lambda: FlowSequential(
        [_mix(6), _coupling(6, classes=0, conditional=False), _coupling(6, "first")], (6,)),
    "a layer twice": _tied,
    "wide": lambda: FlowSequential([ActNorm(70), _mix(70), *_both(70), ActNorm(70)], (70,)),
    "reversible": lambda: FlowSequential(
        [ActNorm(6), _mix(6), *_both(6), ActNorm(6), *_both(6)], (6,), reversible=True, keep_every=2),
}


def _head(flow, classes=CLASSES, dtype=torch.float64, **options):
    head = FlowClassHead(flow, *flow.shape, classes, CLASSES, prior="learned", **options)
    return scatter(head, 0.3).to(dtype)


def _repeated(head, z):
    """The definition: every row with every class through the flow, called."""
    return flow_class_scores(z, lambda *given: head.flow(*given), head.embedding, head.base.log_prob,
                             head.prior.log_prob())


def _all(head, scores, z, weights):
    return [scores, *torch.autograd.grad(scores, [z, *head.parameters()], weights, allow_unused=True)]


def _assert_close(found, expected, bound=1e-9):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            size = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
            torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound * size)


@pytest.fixture(params=FLOWS)
def flow(request):
    return FLOWS[request.param]()


@pytest.mark.parametrize("classes", [1, CLASSES])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_same_as_the_repeated_batch(flow, rows, classes):
    head = _head(flow, classes)
    z = torch.randn(rows, *flow.shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(rows, classes, dtype=torch.float64)
    assert head.unfused == ""
    with torch.no_grad():
        torch.testing.assert_close(head.scores(z), _repeated(head, z), rtol=1e-10, atol=1e-10)
    _assert_close(_all(head, head.scores(z), z, weights), _all(head, _repeated(head, z), z, weights))


def test_float32_is_as_exact_as_the_repeated_batch(flow):
    head, rows = _head(flow, dtype=torch.float32), 16
    z, weights = torch.randn(rows, *flow.shape, requires_grad=True), torch.randn(rows, CLASSES)
    exact, z64 = copy.deepcopy(head).double(), z.detach().double().requires_grad_()
    inputs, scores = [z64, *exact.parameters()], _repeated(exact, z64)
    by_pair = [torch.autograd.grad(weight * score, inputs, retain_graph=True, allow_unused=True)
               for weight, score in zip(weights.flatten().tolist(), scores.flatten(), strict=True)]
    found, eager = (_all(head, function(z), z, weights) for function in (head.scores, lambda z: _repeated(head, z)))
    assert_three_way(found.pop(0), eager.pop(0), scores)
    names = ["z", *(name for name, _ in head.named_parameters())]
    for name, ours, theirs, parts in zip(names, found, eager, zip(*by_pair, strict=True), strict=True):
        if ours is not None:
            parts = torch.stack(parts)
            assert_three_way(ours, theirs, parts.sum(0), name=name, terms=parts.abs().sum(0))


class Ops(TorchDispatchMode):
    """(name, arguments) of this library's operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastflow":
            self.calls.append((function._opname, args))
        return function(*args, **(kwargs or {}))

    def of(self, name):
        return [args for each, args in self.calls if each == name]


def test_what_does_not_depend_on_the_class_is_computed_once():
    head, z = _head(conditional_flow(8, CLASSES, levels=2, steps=2, hidden=6, blocks=1)), torch.randn(5, 8).double()
    with torch.no_grad(), Ops() as ops:
        head.scores(z)
    shared = [args[6:8] for args in ops.of("residual_coupling")]
    assert shared == [(True, True), (False, True), *[(False, False)] * 6]
    assert [args[1].shape[0] for args in ops.of("residual_coupling")] == [5, 5, *[15] * 6]
    assert not ops.of("affine_coupling")
    assert len(ops.of("invert")) == 4  # one determinant a mix, whatever the rows


@pytest.mark.parametrize("name", ["two levels", "odd width, norm last", "factor out twice"])
@pytest.mark.parametrize("normal", [True, False])
def test_chunks_of_rows_change_nothing(monkeypatch, name, normal):
    """Above MOST_KEPT bytes forward keeps nothing and backward computes it again, some rows at a time."""
    head = _head(FLOWS[name]())
    z = torch.randn(7, *head.flow.shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, CLASSES, dtype=torch.float64)
    base = head.base.log_prob if normal else lambda z_h: head.base.log_prob(z_h)

    def computed():
        return _all(head, flow_class_scores(z, head.flow, head.embedding, base, head.prior.log_prob()), z, weights)

    whole = computed()
    _assert_close(whole, _all(head, _repeated(head, z), z, weights))
    with Ops() as ops:
        computed()
    assert len(ops.of("residual_coupling")) == len(ops.of("residual_coupling_backward"))
    monkeypatch.setattr(class_pairs, "MOST_KEPT", 2000)
    with Ops() as chunked:
        _assert_close(computed(), whole, 1e-12)
    assert len(chunked.of("residual_coupling")) == 2 * len(chunked.of("residual_coupling_backward"))
    assert len(chunked.of("residual_coupling_backward")) > len(ops.of("residual_coupling_backward"))


@pytest.mark.parametrize("most", [class_pairs.MOST_KEPT, 2000], ids=["whole", "chunks"])
@pytest.mark.parametrize("normal", [True, False])
def test_threshold_0_is_exact_and_cheap(monkeypatch, most, normal):
    """Labelled rows cost one pair, unlabelled ones every class but the impossible."""
    monkeypatch.setattr(class_pairs, "MOST_KEPT", most)
    head = _head(FLOWS["two levels"]())
    log_prior = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64).log()
    z = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, -1, 2, -1, 0, 0, -1])
    base = head.base.log_prob if normal else lambda z_h: head.base.log_prob(z_h)

    def computed(threshold):
        given = (z, head.flow, head.embedding, base, log_prior, labels, None, threshold)
        marginal = flow_class_marginal(*given)
        return _all(head, marginal, z, torch.ones(7, dtype=torch.float64))

    with Ops() as ops:
        found = computed(0.0)
    _assert_close(found, computed(None), 1e-12)
    layers = 8
    assert sum(args[1].shape[0] for args in ops.of("residual_coupling_backward")) == layers * (4 + 3 * 2)


def test_threshold_without_any_pair():
    head = _head(FLOWS["two levels"](), threshold=0.0)
    z = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    zero = [*head.flow.parameters(), head.embedding, z]
    for grad in torch.autograd.grad(head.scores(z), zero, torch.zeros(4, CLASSES, dtype=torch.float64)):
        assert not grad.any()


def test_threshold_hides_no_nan():
    head = _head(FLOWS["two levels"](), threshold=0.5)
    z = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[1.0, float("nan"), 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    (grad,) = torch.autograd.grad(head.scores(z), z, weights)
    assert grad[0].isnan().all()
    assert grad[1].isfinite().all()


@pytest.mark.parametrize("threshold", [1e-3, 0.1, 0.4])
def test_threshold_keeps_its_bound(threshold):
    """|error of a row's gradient| <= K threshold sum_k |g_k| max_k |dG_k / dz| (docs of `flow_class_scores`)."""
    exact = _head(FLOWS["two levels"]())
    head = copy.deepcopy(exact)
    head.threshold = threshold
    z = 2 * torch.randn(32, 8, dtype=torch.float64)
    z.requires_grad_()
    found, truth = (torch.autograd.grad(each.marginal(z).sum(), z)[0] for each in (head, exact))
    scores = exact.scores(z)
    slopes = [torch.autograd.grad(scores[:, k].sum(), z, retain_graph=True)[0].norm(dim=1) for k in range(CLASSES)]
    error = (found - truth).norm(dim=1)
    posterior = exact.posterior(z).detach()
    dropped = (posterior <= threshold).any(1)
    assert (error <= CLASSES * threshold * torch.stack(slopes).amax(0) + 1e-12).all()
    assert (error[dropped] > 1e-6).any()
    assert (error[~dropped] <= 1e-12).all()


def _with_hook(head):
    head.flow.layers[3].conditioner.blocks[0].first.register_forward_hook(lambda *_: None)


def _with_dropout(head):
    head.flow.layers[3].conditioner.blocks[0].dropout.p = 0.1


def _subclassed(head):
    class Mine(ResidualMLP):
        pass

    head.flow.layers[3].conditioner.__class__ = Mine


def _replaced(head):
    head.flow.layers[0].forward = type(head.flow.layers[0]).forward.__get__(head.flow.layers[0])


def _normed(head):
    torch.nn.utils.parametrizations.weight_norm(head.flow.layers[2].conditioner.output)


def _other_block(head):
    head.flow.layers[2].conditioner.blocks[0] = torch.nn.Identity()


def _without_bias(head):
    head.flow.layers[2].conditioner.input.bias = None


OBSTACLES = {
    "hook inside": (_with_hook, r"layer 3 \(AffineCoupling\) .* a Linear, expected a Linear without hooks"),
    "hook of the flow": (lambda head: head.flow.register_forward_pre_hook(lambda *_: None),
                         "the flow is a FlowSequential with a hook"),
    "dropout": (_with_dropout, "layer 3 .* dropout is active"),
    "subclass": (_subclassed, "layer 3 .* has a Mine as conditioner, expected a ResidualMLP"),
    "replaced forward": (_replaced, r"layer 0 \(ActNorm\) .* a hook or a forward of its own"),
    "parametrization": (_normed, "layer 2 .* with a ParametrizedLinear, expected a Linear"),
    "another block": (_other_block, "layer 2 .* has a conditioner with a Identity, expected a _ResidualBlock"),
    "no bias": (_without_bias, "layer 2 .* has a conditioner of other sizes"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_has_to_be_called_is_called(name):
    change, reason = OBSTACLES[name]
    head, z = _head(FLOWS["two levels"]()), torch.randn(4, 8, dtype=torch.float64)
    change(head)
    assert re.match(reason, head.unfused)
    torch.manual_seed(1)
    with Ops() as ops:
        found = head.scores(z)
    assert not ops.of("residual_coupling")
    torch.manual_seed(1)
    assert torch.equal(found, _repeated(head, z))
    assert reason.split(" ")[0] in repr(head)


@pytest.mark.parametrize(("flow", "reason"), [
    (lambda: FlowSequential([_coupling(6, scale_map=ScaleMap("tanh", gain=torch.ones(3)))], (6,)), "learned gain"),
    (lambda: FlowSequential([_coupling(6, packing="shift_scale")], (6,)), "another packing"),
    (lambda: FlowSequential([AffineCoupling(ResidualMLP(6, 12, 6, 1, 0.0, 3), Split.checkerboard((6,)))], (6,)),
     "has the split Split.checkerboard"),
    (lambda: FlowSequential([AffineCoupling(lambda x, c: torch.zeros(len(x), 6, dtype=x.dtype))], (6,)),
     "has a function as conditioner"),
    (lambda: FlowSequential([ActNorm(6), FactorOut(), _coupling(2)], (6,)), "comes before the first coupling"),
    (lambda: FlowSequential([ActNorm(6)], (6,)), "no layer depends on the class"),
    (lambda: _coupling(6), "flow is a AffineCoupling, expected a FlowSequential"),
])
def test_flows_without_a_plan(flow, reason):
    head = scatter(FlowClassHead(flow(), 6, CLASSES)).double()
    z = torch.randn(4, 6, dtype=torch.float64)
    assert reason in head.unfused
    torch.testing.assert_close(head.scores(z), _repeated(head, z))


def test_dropout_matters_in_training_alone():
    head = _head(conditional_flow(8, CLASSES, levels=1, steps=1, hidden=6, blocks=1, dropout=0.5))
    assert "dropout" in head.unfused
    assert head.eval().unfused == ""


def test_other_reasons():
    head, z = _head(FLOWS["two levels"](), dtype=torch.float32), torch.randn(4, 8)
    with fastflow.backend("reference"):
        assert "backend 'reference'" in head.unfused
        expected = head.scores(z)
    torch.testing.assert_close(head.scores(z), expected)
    with torch.autocast("cpu", torch.float16):
        assert "float16" in head.unfused
    assert "bfloat16" in copy.deepcopy(head).bfloat16().unfused


def test_activations_take_an_eighth_of_the_memory():
    """At most 1/8 of what the repeated batch keeps (architecture of the published head, narrower)."""
    head = _head(conditional_flow(32, CLASSES, levels=2, steps=4, hidden=64, blocks=4), dtype=torch.float32)
    z, parameters = torch.randn(300, 32), list(head.parameters())
    own = 4 * sum(parameter.numel() for parameter in parameters)
    pairs, plain = (peak_memory(lambda scores=scores: torch.autograd.grad(scores(z).logsumexp(1).sum(), parameters))
                    for scores in (head.scores, lambda z: _repeated(head, z)))
    assert pairs - 2 * own < (plain - own) / 8


def test_memory_is_bounded_for_any_number_of_rows(monkeypatch):
    """Beyond MOST_KEPT bytes more pairs cost the numbers that a pair must have: score, log_det and their gradients."""
    head = _head(FLOWS["two levels"](), dtype=torch.float32)
    monkeypatch.setattr(class_pairs, "MOST_KEPT", 2**15)

    def step(rows):
        z = torch.randn(rows, 8)
        return lambda: torch.autograd.grad(head.scores(z).logsumexp(1).sum(), list(head.parameters()))

    few, many = (peak_memory(step(rows)) for rows in (300, 1500))
    assert many - few < 1200 * CLASSES * 4 * 12


def test_autocast_multiplies_in_bfloat16_and_keeps_the_state():
    head, z = _head(FLOWS["two levels"](), dtype=torch.float32), torch.randn(256, 8)
    with torch.autocast("cpu", torch.bfloat16), Ops() as ops:
        scores = head.scores(z)
        grads = torch.autograd.grad(scores.logsumexp(1).sum(), list(head.parameters()))
    for args in ops.of("residual_coupling"):
        passive, active, _, table, weights = args[:5]
        assert {passive.dtype, active.dtype, table.dtype} == {torch.float32}
        assert {weight.dtype for weight in weights if weight.dim() == 2} == {torch.bfloat16}
        assert {weight.dtype for weight in weights if weight.dim() == 1} == {torch.float32}
    assert scores.dtype == torch.float32
    expected = head.scores(z)
    assert 0 < (scores - expected).abs().max() < 0.05 * expected.abs().max()
    truth = torch.autograd.grad(expected.logsumexp(1).sum(), list(head.parameters()))
    for grad, right in zip(grads, truth, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - right).norm() <= 0.1 * right.norm() + 1e-3


def test_compiles_into_one_graph():
    torch.compiler.reset()
    head, z = _head(FLOWS["two levels"](), dtype=torch.float32, threshold=0.01), torch.randn(4, 8)
    graphs = []

    def seen(graph, inputs):
        graphs.append(graph.code)
        return make_boxed_func(graph)

    compiled = torch.compile(head.scores, fullgraph=True, backend=aot_autograd(fw_compiler=seen))
    head.threshold = None
    torch.testing.assert_close(compiled(z), head.scores(z))
    grads = [torch.autograd.grad(each(z).logsumexp(1).sum(), list(head.parameters()))
             for each in (compiled, head.scores)]
    _assert_close(*grads, bound=1e-4)
    assert any("residual_coupling_backward" in code for code in graphs)


def test_gradients_of_gradients():
    head = _head(FLOWS["odd width, norm last"]())
    z = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    weight = head.flow.layers[2].conditioner.input.weight
    assert gradgradcheck(lambda z, *_: head.marginal(z), (z, head.embedding, weight, head.base.rho))
    tied = _head(_tied())
    z = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    first = [torch.autograd.grad(scores.sum(), [z, *tied.parameters()], create_graph=True)
             for scores in (tied.scores(z).exp(), _repeated(tied, z).exp())]
    _assert_close(*first)
    second = [torch.autograd.grad(sum(grad.square().sum() for grad in grads), [z, *tied.flow.parameters()])
              for grads in first]
    _assert_close(*second)


def test_torch_func():
    head, z = _head(FLOWS["two levels"]()), torch.randn(3, 8, dtype=torch.float64)
    per_sample = torch.vmap(torch.func.grad(lambda row: head.marginal(row[None]).sum()))(z)
    z.requires_grad_()
    (expected,) = torch.autograd.grad(head.marginal(z).sum(), z)
    torch.testing.assert_close(per_sample, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout):
    """Of z, and of the gradient that comes: that of a sum has stride 0."""
    head, z = _head(FLOWS["many couplings in a row"]()), torch.randn(5, 6, dtype=torch.float64)
    other = relayout(z, layout).requires_grad_()
    z.requires_grad_()
    expected, found = head.scores(z), head.scores(other)
    torch.testing.assert_close(found, expected)
    expanded = torch.ones((), dtype=torch.float64).expand(5, CLASSES)
    torch.testing.assert_close(torch.autograd.grad(found, other, expanded)[0],
                               torch.autograd.grad(expected, z, expanded.contiguous())[0])


def test_frozen_parts_get_no_gradient():
    head, z = _head(FLOWS["two levels"]()), torch.randn(3, 8, dtype=torch.float64)
    head.requires_grad_(False)
    assert not head.scores(z).requires_grad
    z.requires_grad_()
    (grad,) = torch.autograd.grad(head.scores(z).sum(), z)
    torch.testing.assert_close(grad, torch.autograd.grad(_repeated(head, z).sum(), z)[0])


def test_data_far_from_the_origin_keep_their_digits():
    head, z = _head(FLOWS["two levels"](), dtype=torch.float32), 1e4 + torch.randn(64, 8)
    head.flow.layers[0].initialized.fill_(False)
    head.initialize(z)
    exact = copy.deepcopy(head).double()
    assert_three_way(head.scores(z), _repeated(head, z), exact.scores(z.double()))


def test_refuses():
    head, z = _head(FLOWS["two levels"](), dtype=torch.float32), torch.randn(2, 8)
    for threshold in (-1.0, float("nan")):
        head.threshold = threshold
        with pytest.raises(ValueError, match=f"flow_class_scores: threshold is {threshold}, expected None or a number"):
            head.scores(z)
    head.threshold = None
    with pytest.raises(ValueError, match=r"flow_class_scores: contexts is on cpu, expected meta like x"):
        head.scores(z.to("meta"))
    with pytest.raises(ValueError, match=r"FlowSequential: z has shape|FlowSequential: x has shape"):
        head.scores(z[:, :5])
    with torch.no_grad():
        head.embedding[1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"flow_class_scores: contexts is nan at \(1, 2\), expected finite numbers"):
        head.scores(z)
