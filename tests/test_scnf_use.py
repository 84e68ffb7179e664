"""SCNF in use: label swaps, sampling, small batches, start, saving, and what it refuses."""

import pytest
import torch
from scnf_cases import batch, small
from torch import nn

from fastflow.models import SCNF, conv_trunk
from fastflow.nn import FlowSequential, GaussianClassHead, Logit


def test_swapping_labels():
    model, (x, noise) = small().double(), batch(4)
    x = (x.double() + noise) / 17
    with torch.no_grad():
        same = model.reconstruct(x, torch.tensor([0, 1, 2, 0]), source=torch.tensor([0, 1, 2, 0]))
        assert (same - x).abs().max() <= 1e-10
        swapped = model.reconstruct(x, 2, source=0)
        assert (swapped - x).abs().max() > 1e-4
        back = model.reconstruct(swapped, 0, source=2)
        inside = (swapped > 0).all() and (swapped < 1).all()
        assert inside
        assert (back - x).abs().max() <= 1e-10
        z_aux, _, _ = model._latents(x, None)
        swapped_aux, _, _ = model._latents(swapped, None)
        assert torch.allclose(z_aux, swapped_aux, atol=1e-10)
        assert torch.allclose(model.embed(x, 0)[1], model.embed(swapped, 2)[1], atol=1e-10)
        predicted = model.predict(x)
        assert torch.equal(model.reconstruct(x, 1), model.reconstruct(x, 1, source=predicted))
        assert torch.equal(model.embed(x)[1], model.embed(x, predicted)[1])


def test_sampling():
    model = small()
    generator = torch.Generator()
    first, second = (model.sample(5, 1, generator=generator.manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (5, 1, 8, 8)
    assert first.min() >= 0
    assert first.max() <= 1
    assert model.sample(5).shape == (5, 1, 8, 8)
    assert model.sample(3, torch.tensor([0, 1, 2])).shape == (3, 1, 8, 8)
    cold = model.sample(4, 2, temperature=0.0)
    assert torch.allclose(cold, cold[:1].expand(4, 1, 8, 8), atol=1e-5)


def test_samples_are_mapped_back_to_the_base():
    """z of a sample is what was drawn: the scales are the learned ones and z = [z_aux | z_f]."""
    model = small().double()
    x = model.sample(2000, 1, temperature=0.3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        z_aux, z_f, _ = model._latents(x, None)
        z_h = model.head.encode(z_f, torch.ones(2000, dtype=torch.int64))
    for z, base in ((z_aux, model.aux_base), (z_h, model.head.base)):
        ratio = z.std(0) / (0.3 * nn.functional.softplus(base.rho))
        assert (ratio - 1).abs().max() < 0.12


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    model, (x, noise) = small(), batch(rows)
    labels = torch.zeros(rows, dtype=torch.int64)
    assert model.log_joint(x, noise).shape == (rows, 3)
    assert model.predict(x).shape == (rows,)
    assert model.bits_per_dim(x).shape == (rows,)
    assert model.sample(rows).shape == (rows, 1, 8, 8)
    assert model.reconstruct(x, 1).shape == (rows, 1, 8, 8)
    assert model.embed(x, labels)[1].shape == (rows, 32)
    model.log_prob(x, noise).sum().backward()


def test_start_and_saving():
    x, noise = batch(16)
    model = SCNF.digits(hidden=8, head_hidden=8, prior="empirical")
    model.initialize(x, torch.tensor([0, 0, 1, -1]), noise)
    assert all(bool(value) for name, value in model.named_buffers() if name.endswith("initialized"))
    assert torch.allclose(model.head.prior.log_prob().exp()[:3], torch.tensor([3.0, 2.0, 1.0]) / 13)
    loaded = SCNF.digits(hidden=8, head_hidden=8, prior="empirical")
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded.log_joint(x, noise), model.log_joint(x, noise))
    before = loaded.log_joint(x, noise)
    loaded.initialize(x.flip(0), torch.tensor([0, 0, 1, -1]), noise)  # already started: left alone
    assert torch.equal(loaded.log_joint(x, noise), before)


def test_refuses_to_start():
    x, noise = batch(16)
    with pytest.raises(ValueError, match=r"SCNF\.initialize: labels is None, expected training labels"):
        SCNF.digits(prior="empirical").initialize(x, noise=noise)
    with pytest.raises(ValueError, match=r"x has 1 row\(s\), expected at least 2"):
        SCNF.digits().initialize(x[:1], noise=noise[:1])
    x[:, 0, 3, 4] = 0
    with pytest.raises(ValueError, match=r"zero variance in 1 of 64 channels \(28\).* add the dequantisation noise"):
        SCNF.digits().initialize(x)


def test_gmm_head():
    model = SCNF(conv_trunk((1, 8, 8), scales=2, masked_steps=1, channel_steps=1, hidden=6, blocks=1),
                 GaussianClassHead(20, 3), levels=17)  # fmt: skip
    x, noise = batch(8)
    model.initialize(x, noise=noise)
    assert model.log_joint(x, noise).shape == (8, 3)
    assert model.embed(x)[0].shape == (8, 20)
    assert model.sample(2, 1).shape == (2, 1, 8, 8)
    assert (model.double().reconstruct(x, 1, source=1) - (x.double() + 0.5) / 17).abs().max() < 1e-9


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda m, x: m.sample(2, 3), ValueError, r"SCNF\.sample: y has the value 3, expected 0 to 2"),
    (lambda m, x: m.sample(2, torch.tensor([0])), ValueError, r"SCNF\.sample: y has shape \(1,\), expected \(2,\)"),
    (lambda m, x: m.reconstruct(x, -1), ValueError, r"SCNF\.reconstruct: y has the value -1, expected 0 to 2"),
    (lambda m, x: m.embed(x, torch.tensor([0.0, 1.0])), TypeError, r"SCNF\.embed: y has dtype torch\.float32"),
    (lambda m, x: m.log_prob(x[:, :, :7]), ValueError, r"x has shape \(2, 1, 7, 8\), expected \(B, 1, 8, 8\)"),
    (lambda m, x: m.log_prob(x + 17), ValueError, "dequantize: x has values from"),
    (lambda m, x: m.log_prob(x, torch.rand(2)), ValueError, r"dequantize: noise has shape \(2,\)"),
    (lambda m, x: m.log_prob(None), TypeError, "dequantize: x is NoneType"),
    (lambda m, x: SCNF.digits(trunk="dense"), ValueError, "SCNF: trunk kind is 'dense', expected one of conv, vector"),
    (lambda m, x: SCNF.build((1, 8, 8), 17, 3, trunk={"kind": "vector"}, head={}), ValueError,
     "SCNF: head kind is None, expected one of flow, gaussian, normal"),
    (lambda m, x: SCNF.digits(classes=0), ValueError, "ClassPrior: classes is 0"),
    (lambda m, x: SCNF.glow((1, 18, 9), 17, 3), ValueError, r"layer \d+ \(Squeeze\) does not fit"),
    (lambda m, x: SCNF.glow((1, 7, 7), 17, 3), ValueError, "conv_trunk: image is 7 x 7, expected at least 8 x 8"),
    (lambda m, x: SCNF(FlowSequential([Logit()], (2,)), GaussianClassHead(3, 2), 17), ValueError,
     "SCNF: head describes 3 features, expected at most the trunk's 2"),
    (lambda m, x: SCNF(FlowSequential([Logit()], (2,)), GaussianClassHead(2, 2), 0), ValueError,
     "Dequantize: levels is 0, expected at least 2"),
])
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(small(), batch(2)[0])
