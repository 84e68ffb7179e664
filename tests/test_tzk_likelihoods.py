"""TzK's likelihoods given the data set and the class: against the model's own, and in their order once trained."""

import pytest
import torch
from tzk_cases import images

from fastflow.data import digits
from fastflow.models import TzK
from fastflow.training.tzk_likelihoods import conditional_bits


def _grouped() -> tuple[TzK, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """300 images, half of group "no", which has no class; of the others a third unlabelled."""
    _, x, noise = images(300)
    model = TzK.build((1, 8, 8), 17, ["zero", "one"], groups=["yes", "no"], classless=["no"], steps=2, hidden=8)
    model.initialize(x, noise=noise)
    groups = torch.arange(300) % 2
    return model, x, torch.where(groups == 1, -1, torch.arange(300) % 3 - 1), groups, noise


def test_each_image_is_scored_given_its_own_group_and_class():
    model, x, labels, groups, noise = _grouped()
    found = conditional_bits(model, x, labels, groups, noise, draws=256)
    assert {name: set(figures) for name, figures in found.items()} == {
        "yes": {"prior", "group", "class"}, "no": {"prior", "group"}}  # fmt: skip
    with torch.no_grad():
        for number, name in enumerate(("yes", "no")):
            rows = groups == number
            prior, own = model.log_prob(x[rows], noise[rows]), model.log_conditional(x[rows], name, noise=noise[rows])
            assert abs(found[name]["prior"] - model.bits_per_pixel(prior).mean()) < 1e-4
            assert abs(found[name]["group"] - model.bits_per_pixel(own).mean()) < 0.01
        rows = labels >= 0
        both = torch.stack([model.log_conditional(x[rows], name, noise=noise[rows]) for name in ("zero", "one")], 1)
        own = both.gather(1, labels[rows][:, None])
    assert abs(found["yes"]["class"] - model.bits_per_pixel(own).mean()) < 0.01
    assert found == conditional_bits(model, x, labels, groups, noise, draws=256)


def test_more_draws_lower_the_bits():
    model, x, labels, groups, noise = _grouped()
    with torch.no_grad():
        for knowledge in model.knowledge.values():
            torch.nn.init.normal_(knowledge.data_given_style.regressor[-1].weight, std=3.0)
    few, many = (conditional_bits(model, x, labels, groups, noise, draws=draws)["yes"] for draws in (1, 256))
    assert few["prior"] == many["prior"]
    assert few["group"] > many["group"] + 0.003
    assert few["class"] > many["class"] + 0.003


def test_without_groups_labels_and_images():
    model, x, noise = images()
    none = torch.full((len(x),), -1)
    assert set(conditional_bits(model, x, none, None, noise)["all"]) == {"prior"}
    assert set(conditional_bits(model.train(), x, none + 1, None, noise)["all"]) == {"prior", "class"}
    assert model.training
    model, x, labels, _, noise = _grouped()
    assert set(conditional_bits(model, x, labels, torch.ones_like(labels), noise)) == {"no"}


@pytest.mark.smoke
def test_knowing_more_costs_fewer_bits():
    """Three digits, and digits upside down as another group: class below group below prior, on test images."""
    data = digits()

    def joint(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images, labels = images[labels < 3], labels[labels < 3]
        rows = len(labels)
        return (torch.cat([images, images.flip(2)]), torch.cat([labels, torch.full((rows,), -1)]),
                torch.arange(2).repeat_interleave(rows))

    x, labels, groups = joint(data.train_images, data.train_labels)
    model = TzK.build((1, 8, 8), 17, ["zero", "one", "two"], groups=["upright", "turned"], classless=["turned"],
                      steps=3, tile=16, hidden=32, penalty=0.1)
    model.initialize(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 80)
        rows = torch.randint(len(x), (64,))
        loss = sum(model.terms(x[rows], model.observed(labels[rows], groups[rows])).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, labels, groups = joint(data.test_images, data.test_labels)
    bits = conditional_bits(model, x, labels, groups, torch.rand(x.shape))
    assert bits["upright"]["class"] < bits["upright"]["group"] - 0.02 < bits["upright"]["prior"] - 0.04
    assert bits["turned"]["group"] < bits["turned"]["prior"] - 0.02
