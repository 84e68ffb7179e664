"""TzK's objective: against a transcription of its formula, against enumeration, and where gradients go."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from tzk_cases import images, plane, points

from fastflow.models import TzK, tzk_trunk
from fastflow.models.knowledge import Latent

NAN = float("nan")


def _transcribed(model: TzK, x: Tensor, kappa: dict[str, Tensor], style: dict[str, Tensor], eps: dict[str, Tensor],
                 penalties: dict[str, float]) -> tuple[Tensor, Tensor]:
    """(mean log M, mean penalty) of seed-systems 6a, one row, one type, one value of kappa after the other."""
    total, penalty = [], []
    for b in range(len(x)):
        row = x[b : b + 1]
        z, log_det = model.trunk(row)
        log_p_t = log_det + Normal(0.0, nn.functional.softplus(model.base.rho)).log_prob(z).sum()
        log_m, gaps = log_p_t, torch.zeros(1)
        for name, type_ in model.knowledge.items():
            p_present = torch.sigmoid(type_.kappa_given_data(z)[:, 0])
            observed = int(kappa[name][b]) if name in kappa else -1
            for value in (0, 1):
                if observed >= 0:
                    weight = float(value == observed)
                else:
                    weight = p_present.detach() if value else 1 - p_present.detach()
                mean, log_variance = (0.1 * type_.style_given_data.regressor(z)).chunk(2, 1)
                q = Normal(mean, (log_variance / 2).exp())
                c = eps[name][b : b + 1]
                if value:
                    c = type_.style_given_data.flow.flow(mean + (log_variance / 2).exp() * c)[0]
                if name in style:
                    c = torch.where(style[name][b].isnan(), c, style[name][b])
                prior_c = Normal(0.0, 1.0).log_prob(c).sum()
                back, back_log_det = type_.style_given_data.flow.flow.inverse(c)
                log_c_given_t = q.log_prob(back).sum() + back_log_det if value else prior_c
                p_given_c = torch.sigmoid(type_.kappa_given_style(c)[:, 0])
                mean, log_variance = (0.1 * type_.data_given_style.regressor(c)).chunk(2, 1)
                inner, inner_log_det = type_.data_given_style.flow(z)
                log_t_given_k = log_p_t
                if value:
                    log_t_given_k = (Normal(mean, (log_variance / 2).exp()).log_prob(inner).sum() + inner_log_det
                                     + log_det)  # fmt: skip
                kappa_value = torch.full((1,), float(value), dtype=x.dtype)
                log_k_given_t = Bernoulli(p_present).log_prob(kappa_value) + log_c_given_t
                log_k = Bernoulli(p_given_c).log_prob(kappa_value) + prior_c
                log_m = log_m + weight * 0.5 * (log_k_given_t + log_t_given_k - log_p_t + log_k)
                if value:
                    ratio = log_k_given_t + log_p_t - log_t_given_k - log_k
                    gaps = gaps + penalties[name] * weight * ratio.abs()
        total.append(log_m)
        penalty.append(gaps)
    return torch.cat(total).mean(), torch.cat(penalty).mean()


def _noise(model: TzK, rows: int) -> dict[str, Tensor]:
    return {name: points(rows, seed) for seed, name in enumerate(model.knowledge, 10)}


def test_the_objective_is_its_formula():
    """Values and gradients, with kappa observed, absent and unknown, and C observed in a part."""
    model, x = plane(steps=2, types=("a", "b", "c")), points(6)
    model.knowledge["b"].penalty = 2.0
    kappa = {"a": torch.tensor([1, 0, -1, 1, 0, -1]), "b": torch.tensor([1, 1, 1, 0, 0, 0], dtype=torch.int8)}
    style = {"a": torch.tensor([[0.3, -0.2], [NAN, NAN], [0.1, 0.5], [NAN, NAN], [0.2, 0.2], [NAN, NAN]]).double()}
    eps = _noise(model, 6)
    terms = model.terms(x, kappa, style, style_noise=eps)
    log_m, penalty = _transcribed(model, x, kappa, style, eps, {"a": 0.25, "b": 2.0, "c": 0.25})
    assert torch.allclose(-terms["nll"] - terms["knowledge"], log_m)
    assert torch.allclose(terms["penalty"], penalty)
    parameters = list(model.parameters())
    mine = torch.autograd.grad(sum(terms.values()), parameters, allow_unused=True)
    theirs = torch.autograd.grad(penalty - log_m, parameters, allow_unused=True)
    for found, expected in zip(mine, theirs, strict=True):
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_without_types_it_is_maximum_likelihood():
    model, x = plane(types=()), points(6)
    terms = model.terms(x)
    assert terms["knowledge"] == terms["penalty"] == 0
    assert torch.equal(sum(terms.values()), -model.log_prob(x).mean())
    assert model.class_scores(x)[1].shape == (6, 1)


def test_an_unknown_kappa_is_the_weighted_sum_of_both():
    model, x, eps = plane(), points(1), _noise(plane(), 1)
    terms = {value: model.terms(x, {"a": torch.tensor([value])}, style_noise=eps, names=["a"]) for value in (-1, 0, 1)}
    present = torch.sigmoid(model.knowledge["a"].log_odds(model.encode(x).z)).item()
    for name in ("knowledge", "penalty"):
        summed = present * terms[1][name] + (1 - present) * terms[0][name]
        assert torch.allclose(terms[-1][name], summed)
    weights = [torch.autograd.grad(sum(each.values()), model.trunk.layers[0].lower, retain_graph=True)[0]
               for each in terms.values()]  # fmt: skip
    assert torch.allclose(weights[0], present * weights[2] + (1 - present) * weights[1])


def test_the_parts_of_types():
    """`names` chooses types, whose terms add up; `positive_weight` is one of the discriminators alone."""
    model, x, eps = plane(), points(6), _noise(plane(), 6)
    kappa = {"a": torch.tensor([1, 0, 0, 0, 1, 0])}
    whole, a, b = (model.terms(x, kappa, style_noise=eps, names=names) for names in (None, ["a"], ["b"]))
    assert torch.allclose(whole["knowledge"], a["knowledge"] + b["knowledge"])
    assert torch.allclose(whole["penalty"], a["penalty"] + b["penalty"])
    type_ = model.knowledge["a"]
    type_.positive_weight = 3.0
    heavy = model.terms(x, kappa, style_noise=eps, names=["a"])
    assert torch.equal(heavy["penalty"], a["penalty"])
    rows = x[[0, 4]]
    data = model.encode(rows)
    style = type_.draw_style(data.z, eps["a"][[0, 4]])
    evidence = nn.functional.logsigmoid(type_.log_odds(data.z)) + nn.functional.logsigmoid(type_.style_log_odds(style))
    assert torch.allclose(heavy["knowledge"] - a["knowledge"], -2.0 * 0.5 * evidence.sum() / 6)


@pytest.mark.parametrize("penalty", [0.25, 1.0])
def test_what_the_penalty_lets_pass(penalty):
    """Where p(T | K) is above p(T) p(K | T) / p(K), the loss raises it further only for lambda below 1/2."""
    type_, z = plane(penalty=penalty).knowledge["a"], points(3)
    log_det, log_prob = (torch.full((3,), value, dtype=z.dtype, requires_grad=True) for value in (50.0, -50.0))
    log_mean, gap = type_.compound(Latent(z, log_det, log_prob), 0.1 * points(3, 1), True)
    conditional, prior = torch.autograd.grad((gap - log_mean).sum(), [log_det, log_prob])
    assert torch.allclose(conditional, torch.full_like(z[:, 0], penalty - 0.5))
    assert torch.allclose(prior, -conditional)


def test_terms_without_data_are_the_formula_of_imputed_data():
    """With kappa = 1 and C observed only T is drawn: then its terms are those of `terms` on that T."""
    model = plane(steps=2)
    style = 0.3 * points(5)
    ones = torch.ones(5, dtype=torch.int64)
    torch.manual_seed(3)
    found = model.terms_without_data("a", 5, ones, style)
    torch.manual_seed(3)
    torch.randn(5, 2, dtype=torch.float64)  # C's draw, which is not needed
    noise = torch.randn(5, 2, dtype=torch.float64)
    x = model.trunk.inverse(model.knowledge["a"].data_given_style.draw(style, noise))[0]
    expected = model.terms(x.detach(), {"a": ones}, {"a": style}, names=["a"])
    for term, value in found.items():
        assert torch.allclose(value, expected[term])
    unknown = model.terms_without_data("a", 400)
    assert all(value.isfinite() for value in unknown.values())


def test_discriminators_are_frozen_where_data_are_missing():
    model = plane(steps=2)
    sum(model.terms_without_data("a", 8).values()).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("trunk.layers.") and name < "trunk.layers.3":
            continue  # the last layers on the way to T, whose value no term needs
        reached = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert reached == (".kappa_given_" not in name and not name.startswith("knowledge.b.")), name
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.zero_grad()
    sum(model.terms(points(8), names=["a"]).values()).backward()
    assert model.knowledge["a"].kappa_given_data[0].weight.grad.abs().sum() > 0


def test_an_added_type_trains_alone():
    """Nothing that was there changes: not a parameter, not a density, not a prediction of the old types."""
    model, x, noise = images()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before, style = model.log_prob(x, noise), torch.zeros(len(x), 2)
    old = model.log_conditional(x, "zero", style, noise)
    added = model.add("two", is_class=True, hidden=8, style=3)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in added.parameters()}
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    started = [parameter.clone() for parameter in trained]
    losses = []
    for _ in range(5):
        terms = model.terms(x, {"two": torch.arange(len(x)) % 2}, noise=noise, names=["two"])
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append(sum(terms.values()).item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(parameter, start) for parameter, start in zip(trained, started, strict=True))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert torch.allclose(model.log_prob(x, noise), before, atol=1e-5)
    assert torch.allclose(model.log_conditional(x, "zero", style, noise), old, atol=1e-5)
    assert model.classes == 3
    assert model.class_scores(x, noise)[1].shape == (len(x), 3)


@pytest.mark.smoke
def test_two_blobs_are_told_apart():
    """From 40 labels both predictors know the classes, and knowing the class raises the likelihood."""
    labels = torch.arange(400) % 2
    x = 0.4 * torch.randn(400, 2) + torch.where(labels == 0, -1.0, 1.0)[:, None]
    # two numbers of style could stand for all of the plane: here only lambda keeps p(T | K) in step with p(T)
    model = TzK(tzk_trunk((2,), steps=3, alpha=None), 1, ["a", "b"], steps=1, hidden=16, penalty=1.0)
    model.initialize(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    visible = torch.where(torch.arange(400) < 40, labels, -1)
    for _ in range(300):
        terms = model.terms(x, model.observed(visible))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    with torch.no_grad():
        assert (model.predict(x) == labels).float().mean() > 0.95
        assert (model.log_class_joint(x).argmax(1) == labels).float().mean() > 0.95
        given = torch.stack([model.log_conditional(x, name) for name in ("a", "b")], 1)
        assert given[torch.arange(400), labels].mean() > model.log_prob(x).mean() + 0.1
    drawn = model.sample(500, 0, generator=torch.Generator().manual_seed(1))
    assert (drawn.sum(1) < 0).float().mean() > 0.9
