"""TzK in use: sampling, small batches, the published model without values, saving, and what it refuses."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from tzk_cases import images, plane, points

from fastflow.models import Knowledge, TzK, tzk_trunk


def test_sampling():
    model, *_ = images()
    generator = torch.Generator()
    for y in (None, 0, "digits"):
        first, second = (model.sample(5, y, 0.3, generator.manual_seed(1)) for _ in range(2))
        assert torch.equal(first, second)
        assert first.shape == (5, 1, 8, 8)
        assert first.isfinite().all()
        assert first.min() >= 0
        assert first.max() <= 1
    style = torch.zeros(3, 2)
    cold = model.sample(3, "zero", temperature=0.0, style=style)
    assert torch.allclose(cold, cold[:1].expand(3, 1, 8, 8), atol=1e-5)
    labels = torch.tensor([0, 1, 0])
    mixed = model.sample(3, labels, temperature=0.0, style=style)
    assert torch.allclose(mixed[[0, 2]], cold[:2])
    assert torch.allclose(mixed[1:2], model.sample(1, "one", temperature=0.0, style=style[:1]))
    other = model.sample(3, "zero", temperature=0.0, style=style + 2)
    assert (other - cold).abs().max() > 1e-4


def test_samples_that_overflow_are_drawn_again_or_refused():
    """Float32 holds all draws of a deep trunk that was only started, some of a hot one, and none of a hotter one."""
    x, noise = torch.randint(17, (64, 1, 8, 8)), torch.rand(64, 1, 8, 8)
    model = TzK.build((1, 8, 8), 17, steps=10)
    model.initialize(x, noise=noise)
    generator = torch.Generator().manual_seed(0)
    for temperature, least, most in ((1.0, 0, 0), (1.4, 1, 63)):
        noise = torch.randn(64, 64, generator=generator.manual_seed(0))
        once = model.trunk.inverse(model._latent(temperature * noise, None, None))[0]
        assert least <= (~once.isfinite()).flatten(1).any(1).sum() <= most
    drawn = model.sample(64, temperature=1.4, generator=generator.manual_seed(0))
    assert drawn.isfinite().all()
    assert model.log_prob(drawn.clamp(1e-3, 1 - 1e-3)).isfinite().all()
    with pytest.raises(FloatingPointError, match=r"TzK\.sample: \d+ of 8 draws of T left the range of torch\.float32"):
        model.sample(8, temperature=5.0)


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    model, x, noise = images()
    x, noise = x[:rows], noise[:rows]
    assert model.predict(x).shape == (rows,)
    assert model.log_conditional(x, "digits", noise=noise, draws=3).shape == (rows,)
    assert model.log_class_joint(x, noise, draws=3).shape == (rows, 2)
    assert model.sample(rows, 1, temperature=0.3).shape == (rows, 1, 8, 8)
    terms = model.terms(x, model.observed(torch.zeros(rows, dtype=torch.int64)), noise=noise)
    if rows:
        sum(terms.values()).backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_rows_do_not_depend_on_the_batch():
    model, x = plane(), points(6)
    eps = points(6, 1)
    whole = model.terms(x, style_noise={"a": eps}, names=["a"])
    parts = [model.terms(x[i : i + 2], style_noise={"a": eps[i : i + 2]}, names=["a"]) for i in (0, 2, 4)]
    for name, value in whole.items():
        assert torch.allclose(value, sum(part[name] for part in parts) / 3, rtol=1e-12)
    drawn = points(20 * 6, 2).view(20, 6, 2)
    type_ = model.knowledge["a"]
    whole = type_.log_joint(model.encode(x), drawn)
    parts = [type_.log_joint(model.encode(x[i : i + 3]), drawn[:, i : i + 3]) for i in (0, 3)]
    assert torch.allclose(whole, torch.cat(parts), rtol=1e-12)


def test_the_published_model_reads_no_value():
    """Tensors without values raise where a device would have to synchronise."""
    model = TzK.mnist_omniglot()  # whose matrices are factored when it is built
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, noise = torch.zeros(4, 1, 32, 32, dtype=torch.uint8), torch.rand(4, 1, 32, 32)
        labels = torch.zeros(4, dtype=torch.int64)
        kappa = model.observed(labels, labels)
        terms = model.terms(x, kappa, {"digit_3": torch.zeros(4, 2)}, noise, names=["mnist", "digit_3"])
        assert {name: value.shape for name, value in terms.items()} == {"nll": (), "knowledge": (), "penalty": ()}
        sum(terms.values()).backward()
        assert model.encode(x, noise).z.shape == (4, 1, 32, 32)
        assert model.class_scores(x, noise)[1].shape == (4, 10)
        assert model.knowledge["mnist"].log_joint(model.encode(x, noise), torch.randn(3, 4, 2)).shape == (4,)


def test_scores_and_terms_compile_in_one_graph():
    model, x = plane(types=("a",)), points(4)
    eps, kappa = {"a": points(4, 1)}, {"a": torch.tensor([1, 0, -1, -1])}
    compiled = torch.compile(model.class_scores, fullgraph=True, backend="aot_eager")
    for mine, expected in zip(compiled(x), model.class_scores(x), strict=True):
        assert torch.allclose(mine, expected)
    compiled = torch.compile(model.terms, fullgraph=True, backend="aot_eager")
    expected = model.terms(x, kappa, style_noise=eps)
    for name, value in compiled(x, kappa, style_noise=eps).items():
        assert torch.allclose(value, expected[name])


def test_autocast_runs_only_the_regressors_in_16_bits():
    model, x, noise = images()
    eps = {name: torch.randn(len(x), 2) for name in model.knowledge}
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.terms(x, noise=noise, style_noise=eps)
        data = model.encode(x, noise)
    assert {value.dtype for value in (*data, *terms.values())} == {torch.float32}
    for name, value in model.terms(x, noise=noise, style_noise=eps).items():
        assert torch.allclose(terms[name], value, rtol=0.02)


def test_start_and_saving():
    model, x, noise = images()
    assert all(bool(value) for name, value in model.named_buffers() if name.endswith("initialized"))
    before = model.class_scores(x, noise)
    model.initialize(x.flip(0), noise=noise)  # already started: left alone
    loaded = TzK.build((1, 8, 8), 17, ["zero", "one"], types=["digits"], steps=2, hidden=8)
    loaded.load_state_dict(model.state_dict())
    for each in (model, loaded):
        assert all(map(torch.equal, each.class_scores(x, noise), before))
    reversible = TzK.build((1, 8, 8), 17, ["zero", "one"], types=["digits"], steps=2, hidden=8, reversible=True)
    reversible.load_state_dict(model.state_dict())
    eps = {name: torch.randn(len(x), 2) for name in model.knowledge}
    for each in (model, reversible):
        sum(each.terms(x, noise=noise, style_noise=eps).values()).backward()
    for kept, recomputed in zip(model.parameters(), reversible.parameters(), strict=True):
        assert torch.allclose(kept.grad, recomputed.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda m, x: m.terms(x, {"c": x}), ValueError, r"TzK\.terms: the type is 'c', expected one of a, b"),
    (lambda m, x: m.terms(x, names=["c"]), ValueError, r"TzK\.terms: the type is 'c', expected one of a, b"),
    (lambda m, x: m.terms(x, {"a": torch.tensor([2, 0])}), ValueError, "kappa has the value 2, expected -1 to 1"),
    (lambda m, x: m.terms(x, {"a": torch.ones(2)}), TypeError, "kappa has dtype torch.float32"),
    (lambda m, x: m.terms(x, style={"a": x[:1]}), ValueError, r"style has shape \(1, 2\), expected \(2, 2\)"),
    (lambda m, x: m.log_conditional(x, "c"), ValueError, r"TzK\.log_conditional: the type is 'c'"),
    (lambda m, x: m.product_of_experts(x, ["c"]), ValueError, r"TzK\.product_of_experts: the type is 'c'"),
    (lambda m, x: m.terms_without_data("c", 2), ValueError, r"TzK\.terms_without_data: the type is 'c'"),
    (lambda m, x: m.sample(2, 2), ValueError, r"TzK\.sample: the type is 2, expected one of a, b"),
    (lambda m, x: m.sample(2, "a", style=x[:1]), ValueError, r"TzK\.sample: style has shape \(1, 2\)"),
    (lambda m, x: m.sample(2, style=x), ValueError, r"TzK\.sample: style is given and y is None"),
    (lambda m, x: m.sample(2, torch.tensor([0, 2])), ValueError, r"TzK\.sample: y has the value 2, expected 0 to 1"),
    (lambda m, x: m.log_conditional(x, "a", x[:, :1]), ValueError, r"style has shape \(2, 1\), expected \(2, 2\)"),
    (lambda m, x: m.log_conditional(x, "a", draws=0), ValueError, "TzK: draws is 0, expected at least 1"),
    (lambda m, x: m.terms_without_data("a", 3, style=x), ValueError, r"style has shape \(2, 2\), expected \(3, 2\)"),
    (lambda m, x: m.terms(x, style_noise={"a": x[:1]}), ValueError, r"TzK\.terms: style_noise has shape \(1, 2\)"),
    (lambda m, x: m.observed(torch.tensor([2])), ValueError, "labels has the value 2, expected -1 to 1"),
    (lambda m, x: m.add("a"), ValueError, "TzK: the type's name is 'a', expected an identifier"),
    (lambda m, x: m.add("keys"), ValueError, "TzK: the type's name is 'keys'"),
    (lambda m, x: m.log_prob(x[:, :1]), ValueError, r"x has shape \(2, 1\), expected \(B, 2\)"),
    (lambda m, x: TzK(m.trunk, 1, ["a"], ["a"]), ValueError, "TzK: the type's name is 'a', expected an identifier"),
    (lambda m, x: TzK(m.trunk, 1, [], ["a"], ["b"]), ValueError, "TzK: classless has 'b', expected groups: a"),
    (lambda m, x: m.observed(torch.tensor([0]), torch.tensor([0])), ValueError,
     r"TzK\.observed: groups is given, expected \[B\] of the model's groups, none"),
    (lambda m, x: TzK(m.trunk, 1, [], ["a"]).observed(torch.tensor([0])), ValueError, r"groups is None, expected .*a"),
    (lambda m, x: TzK(m.trunk, 1, [], ["a"]).observed(torch.tensor([0]), torch.tensor([1])), ValueError,
     "groups has the value 1, expected 0 to 0"),
    (lambda m, x: TzK(m.trunk, 1).log_class_joint(x), ValueError, "the model has no classes"),
    (lambda m, x: tzk_trunk((1, 8, 8), tile=8), ValueError, "tile is 8, expected a square of at least 4"),
    (lambda m, x: tzk_trunk((1, 28, 28), tile=256), ValueError, r"\(Squeeze\) does not fit"),
    (lambda m, x: Knowledge((2,), style=0), ValueError, "Knowledge: style is 0, expected at least 1"),
    (lambda m, x: Knowledge((2,), penalty=-1.0), ValueError, "Knowledge: penalty is -1.0"),
])
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(plane(), points(2))
