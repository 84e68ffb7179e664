"""Class heads, base distribution, class prior: all pairs against class by class, marginals, sampling, refusals."""

import math

import pytest
import torch
import torch.nn.functional as F
from bijections import scatter
from torch.autograd import gradcheck

from fastflow.models import conditional_flow
from fastflow.nn import ClassPrior, DiagonalNormal, FlowClassHead, GaussianClassHead
from fastflow.ops import class_cross_entropy, flow_class_marginal, flow_class_scores

CLASSES, FEATURES = 3, 8
HEADS = ("flow", "shared_diag", "class_diag", "isotropic", "shared_full", "class_full")


def _head(kind: str, prior="uniform", dtype: torch.dtype = torch.float64):
    if kind == "flow":
        flow = conditional_flow(FEATURES, CLASSES, levels=2, steps=1, hidden=6, blocks=1)
        head = FlowClassHead(flow, FEATURES, CLASSES, prior=prior)
    else:
        head = GaussianClassHead(FEATURES, CLASSES, kind, prior=prior)
    return scatter(head).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_pairs_at_once_are_each_class_by_itself(dtype):
    """The naive K-fold tiling of seed-systems 12.3, values and gradients."""
    head, z = _head("flow", [0.5, 0.3, 0.2], dtype), torch.randn(5, FEATURES, dtype=dtype)
    columns = []
    for label in range(CLASSES):
        z_h, log_det = head.flow(z, head.embedding[label].expand(5, -1))
        columns.append(log_det + head.base.log_prob(z_h) + head.prior.log_prob()[label])
    naive = torch.stack(columns, 1)
    value_bound, gradient_bound = (1e-12, 1e-10) if dtype == torch.float64 else (1e-5, 1e-4)
    assert torch.allclose(head.scores(z), naive, rtol=value_bound, atol=value_bound)
    labels = torch.tensor([0, -1, 2, -1, 1])
    own = torch.autograd.grad(head.marginal(z, labels).sum(), list(head.parameters()))
    picked = torch.where(labels >= 0, naive.gather(1, labels.clamp(min=0)[:, None])[:, 0], naive.logsumexp(1))
    expected = torch.autograd.grad(picked.sum(), list(head.parameters()))
    for gradient, truth in zip(own, expected, strict=True):
        assert (gradient - truth).abs().max() <= gradient_bound * max(1, truth.abs().max())


@pytest.mark.parametrize("kind", HEADS)
def test_marginal_reduces_the_scores(kind):
    head, z = _head(kind), torch.randn(4, FEATURES, dtype=torch.float64)
    scores, labels, weights = head.scores(z), torch.tensor([2, -1, 0, -1]), torch.rand(4, CLASSES).double()
    assert scores.dtype == torch.float64
    assert torch.allclose(head.marginal(z), scores.logsumexp(1))
    assert torch.allclose(head.marginal(z, labels)[labels >= 0], torch.stack([scores[0, 2], scores[2, 0]]))
    assert torch.allclose(head.marginal(z, weights=weights), (weights * scores).sum(1))


@pytest.mark.parametrize("kind", HEADS)
def test_posterior_and_cross_entropy(kind):
    head, z = _head(kind, [0.5, 0.3, 0.2]), torch.randn(4, FEATURES, dtype=torch.float64)
    scores, labels = head.scores(z), torch.tensor([2, -1, 0, -1])
    assert torch.allclose(head.posterior(z), scores.softmax(1))
    log_posterior = scores.log_softmax(1)
    expected = torch.stack([-log_posterior[0, 2], torch.tensor(0.0).double(), -log_posterior[2, 0],
                            torch.tensor(0.0).double()])
    assert torch.allclose(head.cross_entropy(z, labels), expected)
    own, truth = (torch.autograd.grad(loss.sum(), list(head.parameters()))
                  for loss in (head.cross_entropy(z, labels), expected))
    for gradient, right in zip(own, truth, strict=True):
        assert torch.allclose(gradient, right, atol=1e-10)
    assert not head.cross_entropy(z, torch.full((4,), -1)).any()
    assert head.cross_entropy(z[:0], labels[:0]).shape == (0,)
    assert head.posterior(z[:0]).shape == (0, CLASSES)


def test_cross_entropy_of_scores():
    scores = torch.tensor([[1e4, 0.0, -torch.inf], [0.0, 0.0, 0.0]], requires_grad=True)
    assert torch.allclose(class_cross_entropy(scores, torch.tensor([1, 2])), torch.tensor([1e4, math.log(3)]))
    assert class_cross_entropy(scores, torch.tensor([2, -1])).tolist() == [torch.inf, 0.0]
    (grad,) = torch.autograd.grad(class_cross_entropy(scores, torch.tensor([-1, 2])).sum(), scores)
    assert torch.allclose(grad, torch.tensor([[0.0] * 3, [1 / 3, 1 / 3, -2 / 3]]))
    with pytest.raises(ValueError, match=r"class_cross_entropy: scores has shape \(3,\), expected \[B, K\]"):
        class_cross_entropy(scores[0], torch.tensor([0]))
    with pytest.raises(ValueError, match="class_cross_entropy: labels has the value 3, expected -1 to 2"):
        class_cross_entropy(scores, torch.tensor([3, 0]))


@pytest.mark.parametrize("kind", HEADS)
def test_one_class_has_all_of_the_density(kind):
    if kind == "flow":
        flow = conditional_flow(FEATURES, 1, levels=2, steps=1, hidden=6, blocks=1)
        head = scatter(FlowClassHead(flow, FEATURES, 1)).double()
    else:
        head = scatter(GaussianClassHead(FEATURES, 1, kind)).double()
    z = torch.randn(4, FEATURES, dtype=torch.float64)
    assert torch.allclose(head.marginal(z), head.scores(z)[:, 0])
    assert torch.equal(head.posterior(z), torch.ones(4, 1, dtype=torch.float64))
    assert not head.cross_entropy(z, torch.zeros(4, dtype=torch.int64)).any()


@pytest.mark.parametrize("kind", HEADS)
def test_wrong_devices(kind):
    head, z = _head(kind), torch.randn(4, FEATURES, dtype=torch.float64)
    with pytest.raises(ValueError, match="is on cpu, expected meta like x"):
        head.scores(z.to("meta"))
    with pytest.raises(ValueError, match="labels is on meta, expected cpu like x"):
        head.marginal(z, torch.zeros(4, dtype=torch.int64, device="meta"))
    with pytest.raises(ValueError, match="labels is on meta, expected cpu like x"):
        head.cross_entropy(z, torch.zeros(4, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("kind", HEADS)
def test_density_of_the_flow_head_is_that_of_its_latents(kind):
    """log p(z, y) = log p(y) + log N(z_h) + log|det dz_h/dz|, with the Jacobian of `encode`."""
    head, z = _head(kind), torch.randn(2, FEATURES, dtype=torch.float64)
    for label in range(CLASSES):
        labels = torch.full((1,), label)
        for row in z:
            jacobian = torch.autograd.functional.jacobian(lambda r, y=labels: head.encode(r[None], y)[0], row)
            z_h = head.encode(row[None], labels)
            scale = F.softplus(head.base.rho) if kind == "flow" else torch.ones(FEATURES).double()
            density = torch.distributions.Normal(0.0, scale).log_prob(z_h).sum() + torch.linalg.slogdet(jacobian)[1]
            assert torch.allclose(head.scores(row[None])[0, label], density + head.prior.log_prob()[label])


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("rows", [0, 1, 6])
def test_decode_inverts_encode(kind, rows):
    head, z = _head(kind), torch.randn(rows, FEATURES, dtype=torch.float64)
    labels = torch.arange(rows) % CLASSES
    assert torch.allclose(head.decode(head.encode(z, labels), labels), z, atol=1e-10)
    assert head.scores(z).shape == (rows, CLASSES)
    assert head.marginal(z, labels).shape == (rows,)


@pytest.mark.parametrize("kind", HEADS)
def test_samples_have_the_heads_distribution(kind):
    head = _head(kind)
    labels = torch.ones(4000, dtype=torch.int64)
    z_h = head.encode(head.sample(labels, 0.5, torch.Generator().manual_seed(3)), labels)
    scale = F.softplus(head.base.rho) if kind == "flow" else torch.ones(FEATURES).double()
    standard = z_h / (0.5 * scale)
    assert standard.mean(0).abs().max() < 5 / 4000**0.5
    assert (standard.var(0) - 1).abs().max() < 5 * (2 / 4000) ** 0.5


def test_gradients():
    head = _head("flow")
    z = torch.randn(2, FEATURES, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda z, *_: head.marginal(z, torch.tensor([1, -1])), (z, head.embedding, head.base.rho))


def test_head_starts_from_all_pairs():
    head = FlowClassHead(conditional_flow(FEATURES, CLASSES, levels=1, steps=1, hidden=6, blocks=1), FEATURES, CLASSES)
    z = 2 + 3 * torch.randn(16, FEATURES)
    head.initialize(z)
    assert torch.allclose(head.flow.layers[0].shift, z.mean(0), atol=1e-5)
    assert all(bool(value) for name, value in head.named_buffers() if name.endswith("initialized"))


def test_shift_of_the_base_leaves_responsibilities():
    """softmax(G + c) = softmax(G), and it sums to 1 (seed-systems 12.5)."""
    scores = _head("flow").scores(torch.randn(5, FEATURES, dtype=torch.float64))
    responsibilities = scores.softmax(1)
    assert torch.allclose(responsibilities.sum(1), torch.ones(5, dtype=torch.float64))
    assert torch.allclose((scores + 123.0).softmax(1), responsibilities)


def test_diagonal_normal():
    base, z = scatter(DiagonalNormal(4)), torch.randn(6, 4)
    assert torch.allclose(base.log_prob(z), torch.distributions.Normal(0, F.softplus(base.rho)).log_prob(z).sum(1))
    paper = DiagonalNormal(4, learn_scale=False)
    assert not list(paper.parameters())
    assert torch.allclose(paper.log_prob(z), torch.distributions.Normal(0, 1).log_prob(z).sum(1))
    assert base.log_prob(z.bfloat16()).dtype == torch.float32
    assert base.log_prob(z[:0]).shape == (0,)
    assert DiagonalNormal(0).log_prob(z[:, :0]).tolist() == [0.0] * 6
    draws = base.sample(5000, temperature=2.0, generator=torch.Generator().manual_seed(1))
    assert (draws.std(0) / (2 * F.softplus(base.rho)) - 1).abs().max() < 0.05
    with pytest.raises(ValueError, match=r"DiagonalNormal: z has shape \(6, 3\), expected \(B, 4\)"):
        base.log_prob(z[:, :3])


def test_class_prior():
    assert torch.allclose(ClassPrior(4).log_prob(), torch.full((4,), -math.log(4)))
    given = ClassPrior(3, [2, 1, 1])
    assert torch.allclose(given.log_prob().exp(), torch.tensor([0.5, 0.25, 0.25]))
    assert set(ClassPrior(3, [1, 0, 1]).sample(200).tolist()) == {0, 2}
    learned = ClassPrior(3, "learned")
    learned.log_prob()[0].backward()
    assert torch.allclose(learned.logits.grad, torch.tensor([2.0, -1.0, -1.0]) / 3)
    empirical = ClassPrior(3, "empirical")
    empirical.count(torch.tensor([0, 0, 0, 1, -1, -1]))
    assert torch.allclose(empirical.log_prob().exp(), torch.tensor([4.0, 2.0, 1.0]) / 7)
    loaded = ClassPrior(3, "empirical")
    loaded.load_state_dict(empirical.state_dict())
    assert torch.equal(loaded.log_prob(), empirical.log_prob())
    assert given.sample(0).shape == (0,)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: ClassPrior(0), "ClassPrior: classes is 0, expected at least 1"),
    (lambda: ClassPrior(2, "flat"), "ClassPrior: prior is 'flat', expected uniform, empirical, learned or prob"),
    (lambda: ClassPrior(2, [0.5, 0.2, 0.3]), "ClassPrior: prior is .*, expected 2 probabilities"),
    (lambda: ClassPrior(2, [0.5, -0.5]), "ClassPrior: prior is .*, expected 2 probabilities"),
    (lambda: ClassPrior(2, [0.0, 0.0]), "ClassPrior: prior is .*, expected 2 probabilities"),
    (lambda: ClassPrior(2).count(torch.tensor([0])), "ClassPrior: count sets an empirical prior, this one is uniform"),
    (lambda: ClassPrior(2, "empirical").count(torch.tensor([2])), "labels has the value 2, expected -1 to 1"),
    (lambda: GaussianClassHead(4, 2, "full"), "GaussianClassHead: covariance is 'full', expected one of shared_diag"),
    (lambda: GaussianClassHead(4, 2, means=torch.zeros(4, 2)), r"means has shape \(4, 2\), expected \(2, 4\)"),
    (lambda: GaussianClassHead(4, 0), "ClassPrior: classes is 0"),
    (lambda: FlowClassHead(None, 4, 3, 2), "FlowClassHead: context_features is 2, expected at least the 3 classes"),
])
def test_refuses_to_build(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("kind", HEADS)
def test_labels_out_of_range(kind):
    head, z = _head(kind), torch.randn(2, FEATURES, dtype=torch.float64)
    with pytest.raises(ValueError, match="labels has the value 3, expected 0 to 2"):
        head.encode(z, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="labels has the value -1, expected 0 to 2"):
        head.sample(torch.tensor([-1]))
    with pytest.raises(ValueError, match="labels has the value 3, expected -1 to 2"):
        head.marginal(z, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="labels has the value 3, expected -1 to 2"):
        head.cross_entropy(z, torch.tensor([0, 3]))


def test_bad_arguments_of_the_op():
    head, z = _head("flow"), torch.randn(2, FEATURES, dtype=torch.float64)
    arguments = (z, head.flow, head.embedding, head.base.log_prob, head.prior.log_prob())
    assert torch.equal(flow_class_scores(*arguments), head.scores(z))
    assert torch.equal(flow_class_marginal(*arguments), head.marginal(z))
    for index, value, error, message in (
        (0, z[0], ValueError, r"z has shape \(8,\), expected \[B, D\]"),
        (1, None, TypeError, "flow is NoneType, expected a callable"),
        (2, head.embedding[:0], ValueError, r"contexts has shape \(0, 3\), expected \[K, E\] with at least one class"),
        (3, 1.0, TypeError, "base is float, expected a callable"),
        (4, torch.zeros(2), ValueError, r"log_prior has shape \(2,\), expected \(3,\) to match contexts"),
    ):
        with pytest.raises(error, match=f"flow_class_scores: {message}"):
            flow_class_scores(*arguments[:index], value, *arguments[index + 1 :])
