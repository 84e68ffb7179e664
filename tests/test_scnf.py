"""SCNF: golden sizes, densities, label swaps, sampling, start, saving, and what it refuses."""

import math
from pathlib import Path

import pytest
import torch
from bijections import scatter
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastflow.models import SCNF, ClassFlow, conditional_flow, conv_trunk
from fastflow.nn import ConvResidualNet, FlowClassHead, FlowSequential, GaussianClassHead, Logit, ResidualMLP
from fastflow.ops import class_marginal, uniform_noise
from fastflow.training.build import build_model
from fastflow.training.config import load_config


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _small(**options) -> SCNF:
    """A started, scattered model of 8 x 8 images: 2 scales, 3 classes."""
    sizes = {"trunk": "conv", "scales": 2, "masked_steps": 1, "channel_steps": 1, "hidden": 6, "blocks": 1,
             "head_levels": 2, "head_steps": 1, "head_hidden": 6, "head_blocks": 1}
    model = SCNF.glow((1, 8, 8), 17, 3, **sizes | options)
    model.initialize(*_batch(16)[:1], noise=_batch(16)[1])
    return scatter(model, 0.05)


def _batch(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randint(17, (rows, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return x, uniform_noise(x.shape, seed=seed, step=0, rows=torch.arange(rows))


def test_golden_sizes():
    """seed-systems 12.12 and the table of layers in its section 2b."""
    model = SCNF.mnist()
    assert _parameters(model.trunk) == 6_299_987
    assert _parameters(model.head.flow) + model.head.embedding.numel() == 9_574_676
    assert (model.features, model.head.features, model.aux_base.features) == (784, 196, 588)
    assert (model.levels, model.classes, model.shape) == (256, 10, (1, 28, 28))
    assert model.trunk.leaving == [392, 196]
    assert sum(isinstance(module, ConvResidualNet) for module in model.modules()) == 21
    assert sum(isinstance(module, ResidualMLP) for module in model.modules()) == 16
    digits = SCNF.digits()
    assert (digits.features, digits.levels, digits.classes, digits.shape) == (64, 17, 10, (1, 8, 8))


def test_digits_is_the_model_of_its_configuration():
    config = load_config(Path(__file__).parents[1] / "configs/digits.yaml").model
    trained, model = build_model(config, (1, 8, 8), 17, 10), SCNF.digits(prior=config.prior)
    shapes, expected = ({name: value.shape for name, value in m.state_dict().items()} for m in (model, trained))
    assert shapes == expected
    assert repr(model) == repr(trained)  # which says dropout and scale maps too


def test_the_parts_add_up():
    model, (x, noise) = _small(), _batch(4)
    log_base, scores = model.class_scores(x, noise)
    z, log_det = model.trunk((x.float() + noise) / 17)
    z_aux, z_f = z[:, :-32], z[:, -32:]
    assert torch.allclose(log_base, log_det + model.aux_base.log_prob(z_aux), atol=1e-4)
    assert torch.allclose(scores, model.head.scores(z_f), atol=1e-4)
    joint = model.log_joint(x, noise)
    assert torch.allclose(joint, log_base[:, None] + scores)
    assert torch.allclose(model.log_prob(x, noise), joint.logsumexp(1))
    assert torch.allclose(model.predict_proba(x, noise), joint.softmax(1), atol=1e-5)
    assert torch.equal(model.predict(x, noise), joint.argmax(1))
    expected = math.log2(17) - model.log_prob(x, noise) / (64 * math.log(2))
    assert torch.allclose(model.bits_per_dim(x, noise), expected)


def test_density_is_that_of_the_whole_map():
    """log p(x, y) = log p(y) + log N(z_aux, z_h) + log|det d(z_aux, z_h)/dx|, by one Jacobian of the whole model."""
    model = _small().double()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    for label in range(3):
        def latents(v, label=label):
            z_aux, z_f, _ = model._latents(v.view(1, 1, 8, 8), None)
            return torch.cat([z_aux, model.head.encode(z_f, torch.tensor([label]))], 1)[0]

        jacobian = torch.autograd.functional.jacobian(latents, x.flatten())
        z = latents(x.flatten())[None]
        expected = (torch.linalg.slogdet(jacobian).logabsdet + model.aux_base.log_prob(z[:, :32])
                    + model.head.base.log_prob(z[:, 32:]) + model.head.prior.log_prob()[label])  # fmt: skip
        assert torch.allclose(model.log_joint(x)[:, label], expected)


def test_the_trunk_runs_once_and_the_head_once(monkeypatch):
    model, (x, noise) = _small(), _batch(4)
    calls = []
    model.trunk.register_forward_hook(lambda *_: calls.append("trunk"))
    model.head.flow.register_forward_hook(lambda *_: calls.append("head"))
    model.log_joint(x, noise)
    assert calls == ["trunk", "head"]


def test_image_inputs():
    model, (x, noise) = _small(), _batch(4)
    assert torch.equal(model.log_prob(x), model.log_prob(x, torch.full(x.shape, 0.5)))
    assert torch.allclose(model.log_prob(x, noise), model.log_prob((x.float() + noise) / 17), atol=1e-3)
    assert torch.equal(model.log_prob(x.long(), noise), model.log_prob(x, noise))


def test_swapping_labels():
    model, (x, noise) = _small().double(), _batch(4)
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
    model = _small()
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
    model = _small().double()
    x = model.sample(2000, 1, temperature=0.3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        z_aux, z_f, _ = model._latents(x, None)
        z_h = model.head.encode(z_f, torch.ones(2000, dtype=torch.int64))
    for z, base in ((z_aux, model.aux_base), (z_h, model.head.base)):
        ratio = z.std(0) / (0.3 * nn.functional.softplus(base.rho))
        assert (ratio - 1).abs().max() < 0.12


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    model, (x, noise) = _small(), _batch(rows)
    labels = torch.zeros(rows, dtype=torch.int64)
    assert model.log_joint(x, noise).shape == (rows, 3)
    assert model.predict(x).shape == (rows,)
    assert model.bits_per_dim(x).shape == (rows,)
    assert model.sample(rows).shape == (rows, 1, 8, 8)
    assert model.reconstruct(x, 1).shape == (rows, 1, 8, 8)
    assert model.embed(x, labels)[1].shape == (rows, 32)
    model.log_prob(x, noise).sum().backward()


def test_rows_do_not_depend_on_the_batch():
    model, (x, noise) = _small().double(), _batch(6)
    noise = noise.double()
    whole = model.log_joint(x, noise)
    parts = torch.cat([model.log_joint(x[i : i + 2], noise[i : i + 2]) for i in (0, 2, 4)])
    assert torch.allclose(whole, parts, rtol=1e-12)


def test_start_and_saving():
    x, noise = _batch(16)
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
    x, noise = _batch(16)
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
    x, noise = _batch(8)
    model.initialize(x, noise=noise)
    assert model.log_joint(x, noise).shape == (8, 3)
    assert model.embed(x)[0].shape == (8, 20)
    assert model.sample(2, 1).shape == (2, 1, 8, 8)
    assert (model.double().reconstruct(x, 1, source=1) - (x.double() + 0.5) / 17).abs().max() < 1e-9


def test_without_classes_every_latent_is_normal():
    model = SCNF.build((1, 8, 8), 17, 10, trunk={"kind": "vector", "hidden": 6}, head={"kind": "normal"})
    x, noise = _batch(8)
    model.initialize(x, torch.full((8,), -1), noise)
    model = scatter(model, 0.05).requires_grad_(False)
    model.head.means.zero_()  # they are never learned
    z_aux, z_f, log_det = model._latents(x, noise)
    scale = nn.functional.softplus(torch.cat([model.aux_base.rho, model.head.rho[0]]))
    normal = torch.distributions.Normal(0, scale).log_prob(torch.cat([z_aux, z_f], 1)).sum(1)
    assert model.classes == 1
    assert torch.allclose(model.log_prob(x, noise), log_det + normal, atol=1e-4)
    assert model.sample(3).shape == (3, 1, 8, 8)
    learned = SCNF.build((1, 8, 8), 17, 10, trunk={"kind": "vector"}, head={"kind": "normal"}).named_parameters()
    assert [name for name, parameter in learned if not parameter.requires_grad] == ["head.means"]


def test_bits_per_dim_of_the_identity_on_uniform_noise():
    """A uniform density on [0, 1]^D costs log2(levels) bits a dimension whatever x (seed-systems 12.10)."""

    class Uniform(ClassFlow):
        features, classes, levels = 6, 2, 17

        def class_scores(self, x, noise=None):
            return x.new_zeros(len(x)), torch.full((len(x), 2), -math.log(2))

    assert torch.allclose(Uniform().bits_per_dim(torch.rand(3, 6)), torch.full((3,), math.log2(17)))


def test_mass_is_one():
    """The integral over x and the sum over classes of a 2-D SCNF (seed-systems 12.11)."""
    trunk, flow = (conditional_flow(2, context, levels=1, steps=2, hidden=6, blocks=1) for context in (0, 3))
    model = scatter(SCNF(trunk, FlowClassHead(flow, 2, 3, prior=[0.5, 0.3, 0.2]), levels=2), 0.2)
    model.dequantize.forward = lambda x, noise=None, dtype=None: x  # the plane, not [0, 1]^2
    axis = torch.linspace(-10, 10, 401)
    with torch.no_grad():
        log_prob = model.log_prob(torch.cartesian_prod(axis, axis))
    assert abs(log_prob.double().exp().sum().item() * (axis[1] - axis[0]).item() ** 2 - 1) < 0.01


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
    (lambda m, x: SCNF(FlowSequential([Logit()], (2,)), GaussianClassHead(2, 2), 1), ValueError,
     "Dequantize: levels is 1, expected at least 2"),
])
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(_small(), _batch(2)[0])


@pytest.mark.parametrize("trunk", ["conv", "vector"])
def test_forward_reads_no_value(trunk):
    """Tensors without values raise where a device would have to synchronise."""
    with FakeTensorMode():
        model = SCNF.glow((1, 8, 8), 17, 10, trunk=trunk, scales=2, head_levels=1, head_hidden=64)
        x, noise = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.rand(4, 1, 8, 8)
        labels = torch.zeros(4, dtype=torch.int64)
        log_base, scores = model.class_scores(x, noise)
        (log_base + class_marginal(scores, labels)).sum().backward()
        assert model.embed(x, labels, noise)[1].shape == (4, model.head.features)
        assert model.reconstruct(x, labels, labels, noise).shape == x.shape
        assert uniform_noise((4, 5), seed=0, step=labels.sum(), rows=labels).shape == (4, 5)
        with pytest.raises(DataDependentOutputException):
            model.initialize(x, noise=noise)  # which does read: the flags and the variances


def test_autocast_runs_only_the_conditioners_in_16_bits():
    model, (x, noise) = _small(), _batch(8)
    with torch.autocast("cpu", torch.bfloat16):
        z_aux, z_f, log_det = model._latents(x, noise)
        log_prob = model.log_prob(x, noise)
    assert z_aux.dtype == z_f.dtype == log_det.dtype == log_prob.dtype == torch.float32
    exact = model.log_prob(x, noise)
    assert (log_prob - exact).abs().max() < 0.01 * exact.abs().max()


def test_class_scores_compile_in_one_graph():
    tiny = {"scales": 2, "steps": 1, "hidden": 4, "head_levels": 1, "head_steps": 1, "head_hidden": 4, "head_blocks": 1}
    model, (x, noise) = scatter(SCNF.digits(**tiny)).eval(), _batch(4)
    compiled = torch.compile(model.class_scores, fullgraph=True, backend="aot_eager")
    for mine, expected in zip(compiled(x, noise), model.class_scores(x, noise), strict=True):
        assert torch.allclose(mine, expected, atol=1e-3)
