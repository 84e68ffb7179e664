"""The flow head by pairs: the numbers of the repeated batch, a fraction of its memory."""

import copy

import pytest
import torch
from flow_head_cases import (
    CLASSES,
    FLOWS,
    Ops,
    assert_close,
    everything,
    make_head,
    repeated,
)
from functorch.compile import make_boxed_func
from oracles import LAYOUTS, assert_three_way, relayout
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import gradgradcheck

from fastflow.bench.timing import peak_memory
from fastflow.models import conditional_flow
from fastflow.ops import class_pairs, flow_class_marginal, flow_class_scores


@pytest.fixture(params=FLOWS)
def flow(request):
    return FLOWS[request.param]()


@pytest.mark.parametrize("classes", [1, CLASSES])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_same_as_the_repeated_batch(flow, rows, classes):
    head = make_head(flow, classes)
    z = torch.randn(rows, *flow.shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(rows, classes, dtype=torch.float64)
    assert head.unfused == ""
    with torch.no_grad():
        torch.testing.assert_close(head.scores(z), repeated(head, z), rtol=1e-10, atol=1e-10)
    assert_close(everything(head, head.scores(z), z, weights), everything(head, repeated(head, z), z, weights))


def test_float32_is_as_exact_as_the_repeated_batch(flow):
    head, rows = make_head(flow, dtype=torch.float32), 16
    z, weights = torch.randn(rows, *flow.shape, requires_grad=True), torch.randn(rows, CLASSES)
    exact, z64 = copy.deepcopy(head).double(), z.detach().double().requires_grad_()
    inputs, scores = [z64, *exact.parameters()], repeated(exact, z64)
    by_pair = [torch.autograd.grad(weight * score, inputs, retain_graph=True, allow_unused=True)
               for weight, score in zip(weights.flatten().tolist(), scores.flatten(), strict=True)]
    found, eager = (everything(head, of(z), z, weights) for of in (head.scores, lambda z: repeated(head, z)))
    assert_three_way(found.pop(0), eager.pop(0), scores)
    names = ["z", *(name for name, _ in head.named_parameters())]
    for name, ours, theirs, parts in zip(names, found, eager, zip(*by_pair, strict=True), strict=True):
        if ours is not None:
            parts = torch.stack(parts)
            assert_three_way(ours, theirs, parts.sum(0), name=name, terms=parts.abs().sum(0))


def test_what_does_not_depend_on_the_class_is_computed_once():
    head, z = make_head(conditional_flow(8, CLASSES, levels=2, steps=2, hidden=6, blocks=1)), torch.randn(5, 8).double()
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
    """Above MOST_KEPT bytes forward keeps nothing, goes through MOST_HELD bytes at a time, and is computed again."""
    head = make_head(FLOWS[name]())
    z = torch.randn(7, *head.flow.shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(7, CLASSES, dtype=torch.float64)
    base = head.base.log_prob if normal else lambda z_h: head.base.log_prob(z_h)

    def computed():
        scores = flow_class_scores(z, head.flow, head.embedding, base, head.prior.log_prob())
        return everything(head, scores, z, weights)

    whole = computed()
    assert_close(whole, everything(head, repeated(head, z), z, weights))
    with Ops() as ops:
        computed()
    assert len(ops.of("residual_coupling")) == len(ops.of("residual_coupling_backward"))
    monkeypatch.setattr(class_pairs, "MOST_KEPT", 2000)
    monkeypatch.setattr(class_pairs, "MOST_HELD", 300)
    with Ops() as chunked:
        assert_close(computed(), whole, 1e-12)
    forward = len(chunked.of("residual_coupling")) - len(chunked.of("residual_coupling_backward"))
    assert forward > len(ops.of("residual_coupling"))
    assert len(chunked.of("residual_coupling_backward")) > len(ops.of("residual_coupling_backward"))


@pytest.mark.parametrize("most", [class_pairs.MOST_KEPT, 2000], ids=["whole", "chunks"])
@pytest.mark.parametrize("normal", [True, False])
def test_threshold_0_is_exact_and_cheap(monkeypatch, most, normal):
    """Labelled rows cost one pair, unlabelled ones every class but the impossible."""
    monkeypatch.setattr(class_pairs, "MOST_KEPT", most)
    head = make_head(FLOWS["two levels"]())
    log_prior = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64).log()
    z = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, -1, 2, -1, 0, 0, -1])
    base = head.base.log_prob if normal else lambda z_h: head.base.log_prob(z_h)

    def computed(threshold):
        given = (z, head.flow, head.embedding, base, log_prior, labels, None, threshold)
        marginal = flow_class_marginal(*given)
        return everything(head, marginal, z, torch.ones(7, dtype=torch.float64))

    with Ops() as ops:
        found = computed(0.0)
    assert_close(found, computed(None), 1e-12)
    layers = 8
    assert sum(args[1].shape[0] for args in ops.of("residual_coupling_backward")) == layers * (4 + 3 * 2)


def test_threshold_without_any_pair():
    head = make_head(FLOWS["two levels"](), threshold=0.0)
    z = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    zero = [*head.flow.parameters(), head.embedding, z]
    for grad in torch.autograd.grad(head.scores(z), zero, torch.zeros(4, CLASSES, dtype=torch.float64)):
        assert not grad.any()


def test_threshold_hides_no_nan():
    head = make_head(FLOWS["two levels"](), threshold=0.5)
    z = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[1.0, float("nan"), 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    (grad,) = torch.autograd.grad(head.scores(z), z, weights)
    assert grad[0].isnan().all()
    assert grad[1].isfinite().all()


@pytest.mark.parametrize("threshold", [1e-3, 0.1, 0.4])
def test_threshold_keeps_its_bound(threshold):
    """|error of a row's gradient| <= K threshold sum_k |g_k| max_k |dG_k / dz| (docs of `flow_class_scores`)."""
    exact = make_head(FLOWS["two levels"]())
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


def test_activations_take_an_eighth_of_the_memory():
    """At most 1/8 of what the repeated batch keeps (architecture of the published head, narrower)."""
    head = make_head(conditional_flow(32, CLASSES, levels=2, steps=4, hidden=64, blocks=4), dtype=torch.float32)
    z, parameters = torch.randn(300, 32), list(head.parameters())
    own = 4 * sum(parameter.numel() for parameter in parameters)
    pairs, plain = (peak_memory(lambda scores=scores: torch.autograd.grad(scores(z).logsumexp(1).sum(), parameters))
                    for scores in (head.scores, lambda z: repeated(head, z)))
    assert pairs - 2 * own < (plain - own) / 8


def test_memory_is_bounded_for_any_number_of_rows(monkeypatch):
    """More rows cost the numbers that their pairs must have: score, log_det and their gradients."""
    head = make_head(FLOWS["two levels"](), dtype=torch.float32)
    monkeypatch.setattr(class_pairs, "MOST_KEPT", 2**15)
    monkeypatch.setattr(class_pairs, "MOST_HELD", 2**13)

    def step(rows):
        z = torch.randn(rows, 8)
        return lambda: torch.autograd.grad(head.scores(z).logsumexp(1).sum(), list(head.parameters()))

    few, many = (peak_memory(step(rows)) for rows in (300, 1500))
    assert many - few < 1200 * CLASSES * 4 * 12


def test_inference_holds_the_states_of_a_chunk(monkeypatch):
    """Beyond MOST_HELD bytes more pairs cost only what is returned, and no bit changes."""
    head = make_head(FLOWS["two levels"](), dtype=torch.float32)
    z = torch.randn(1500, 8)

    def forward(rows):
        with torch.no_grad():
            return head.scores(z[:rows])

    whole = forward(1500)
    monkeypatch.setattr(class_pairs, "MOST_HELD", 2**13)
    assert torch.equal(forward(1500), whole)
    few, many = (peak_memory(lambda rows=rows: forward(rows)) for rows in (300, 1500))
    assert many - few < 1200 * CLASSES * 4 * 4


def test_autocast_multiplies_in_bfloat16_and_keeps_the_state():
    head, z = make_head(FLOWS["two levels"](), dtype=torch.float32), torch.randn(256, 8)
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
    head, z = make_head(FLOWS["two levels"](), dtype=torch.float32, threshold=0.01), torch.randn(4, 8)
    graphs = []

    def seen(graph, inputs):
        graphs.append(graph.code)
        return make_boxed_func(graph)

    compiled = torch.compile(head.scores, fullgraph=True, backend=aot_autograd(fw_compiler=seen))
    head.threshold = None
    torch.testing.assert_close(compiled(z), head.scores(z))
    grads = [torch.autograd.grad(each(z).logsumexp(1).sum(), list(head.parameters()))
             for each in (compiled, head.scores)]
    assert_close(*grads, bound=1e-4)
    assert any("residual_coupling_backward" in code for code in graphs)


def test_gradients_of_gradients():
    head = make_head(FLOWS["odd width, norm last"]())
    z = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    weight = head.flow.layers[2].conditioner.input.weight
    assert gradgradcheck(lambda z, *_: head.marginal(z), (z, head.embedding, weight, head.base.rho))
    tied = make_head(FLOWS["a layer twice"]())
    z = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    first = [torch.autograd.grad(scores.sum(), [z, *tied.parameters()], create_graph=True)
             for scores in (tied.scores(z).exp(), repeated(tied, z).exp())]
    assert_close(*first)
    second = [torch.autograd.grad(sum(grad.square().sum() for grad in grads), [z, *tied.flow.parameters()])
              for grads in first]
    assert_close(*second)


def test_torch_func():
    head, z = make_head(FLOWS["two levels"]()), torch.randn(3, 8, dtype=torch.float64)
    per_sample = torch.vmap(torch.func.grad(lambda row: head.marginal(row[None]).sum()))(z)
    z.requires_grad_()
    (expected,) = torch.autograd.grad(head.marginal(z).sum(), z)
    torch.testing.assert_close(per_sample, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout):
    """Of z, and of the gradient that comes: that of a sum has stride 0."""
    head, z = make_head(FLOWS["many couplings in a row"]()), torch.randn(5, 6, dtype=torch.float64)
    other = relayout(z, layout).requires_grad_()
    z.requires_grad_()
    expected, found = head.scores(z), head.scores(other)
    torch.testing.assert_close(found, expected)
    expanded = torch.ones((), dtype=torch.float64).expand(5, CLASSES)
    torch.testing.assert_close(torch.autograd.grad(found, other, expanded)[0],
                               torch.autograd.grad(expected, z, expanded.contiguous())[0])


def test_frozen_parts_get_no_gradient():
    head, z = make_head(FLOWS["two levels"]()), torch.randn(3, 8, dtype=torch.float64)
    head.requires_grad_(False)
    assert not head.scores(z).requires_grad
    z.requires_grad_()
    (grad,) = torch.autograd.grad(head.scores(z).sum(), z)
    torch.testing.assert_close(grad, torch.autograd.grad(repeated(head, z).sum(), z)[0])


def test_data_far_from_the_origin_keep_their_digits():
    head, z = make_head(FLOWS["two levels"](), dtype=torch.float32), 1e4 + torch.randn(64, 8)
    head.flow.layers[0].initialized.fill_(False)
    head.initialize(z)
    exact = copy.deepcopy(head).double()
    assert_three_way(head.scores(z), repeated(head, z), exact.scores(z.double()))


def test_refuses():
    head, z = make_head(FLOWS["two levels"](), dtype=torch.float32), torch.randn(2, 8)
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
