"""SCNF: golden sizes, densities by their definition, one pass of trunk and head, autocast and compilation."""

import math
from pathlib import Path

import pytest
import torch
from bijections import scatter
from scnf_cases import batch, small
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fastflow.data import digits
from fastflow.models import SCNF, ClassFlow, conditional_flow
from fastflow.nn import ConvResidualNet, FlowClassHead, ResidualMLP
from fastflow.ops import class_marginal, uniform_noise
from fastflow.training.build import build_model
from fastflow.training.config_file import load_config


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


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
    config = load_config(Path(__file__).parents[1] / "configs/scnf-glow-digits.yaml").model
    trained, model = build_model(config, digits().describe()), SCNF.digits(prior=config.prior)
    shapes, expected = ({name: value.shape for name, value in m.state_dict().items()} for m in (model, trained))
    assert shapes == expected
    assert repr(model) == repr(trained)  # which says dropout and scale maps too


def test_the_parts_add_up():
    model, (x, noise) = small(), batch(4)
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
    model = small().double()
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
    model, (x, noise) = small(), batch(4)
    calls = []
    model.trunk.register_forward_hook(lambda *_: calls.append("trunk"))
    model.head.flow.register_forward_hook(lambda *_: calls.append("head"))
    model.log_joint(x, noise)
    assert calls == ["trunk", "head"]


def test_image_inputs():
    model, (x, noise) = small(), batch(4)
    assert torch.equal(model.log_prob(x), model.log_prob(x, torch.full(x.shape, 0.5)))
    assert torch.allclose(model.log_prob(x, noise), model.log_prob((x.float() + noise) / 17), atol=1e-3)
    assert torch.equal(model.log_prob(x.long(), noise), model.log_prob(x, noise))


def test_rows_do_not_depend_on_the_batch():
    model, (x, noise) = small().double(), batch(6)
    noise = noise.double()
    whole = model.log_joint(x, noise)
    parts = torch.cat([model.log_joint(x[i : i + 2], noise[i : i + 2]) for i in (0, 2, 4)])
    assert torch.allclose(whole, parts, rtol=1e-12)


def test_without_classes_every_latent_is_normal():
    model = SCNF.build((1, 8, 8), 17, 10, trunk={"kind": "vector", "hidden": 6}, head={"kind": "normal"})
    x, noise = batch(8)
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
    model, (x, noise) = small(), batch(8)
    with torch.autocast("cpu", torch.bfloat16):
        z_aux, z_f, log_det = model._latents(x, noise)
        log_prob = model.log_prob(x, noise)
    assert z_aux.dtype == z_f.dtype == log_det.dtype == log_prob.dtype == torch.float32
    exact = model.log_prob(x, noise)
    assert (log_prob - exact).abs().max() < 0.01 * exact.abs().max()


def test_class_scores_compile_in_one_graph():
    tiny = {"scales": 2, "steps": 1, "hidden": 4, "head_levels": 1, "head_steps": 1, "head_hidden": 4, "head_blocks": 1}
    model, (x, noise) = scatter(SCNF.digits(**tiny)).eval(), batch(4)
    compiled = torch.compile(model.class_scores, fullgraph=True, backend="aot_eager")
    for mine, expected in zip(compiled(x, noise), model.class_scores(x, noise), strict=True):
        assert torch.allclose(mine, expected, atol=1e-3)
