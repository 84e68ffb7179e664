"""Checkpoints of the public FlowGMM code: our model gives its numbers, and inverts where it does not; refusals."""

import pytest
import torch
from flowgmm_oracle import CLASSES, FEATURES, NETS, checkpoint, evaluate, images, vectors

from fastflow.models import FlowGMM, read_flowgmm

# Recorded in float64 from izmailovpavel/flowgmm itself (branch public, commit 071285b): its RealNVP, RealNVPMNIST and
# RealNVPTabular with `checkpoint()` loaded strictly, and its SSLGaussMixture, whose scale is 1 to float32's rounding;
# noise 1/2. Its ResNet was called without the argument init_zeros, which it refuses.
LATENTS = {
    "RealNVP": [-0.4334601541, 1.0659342095, 0.3111479365, -4.0211224594, -3.5909264119, 0.1615774901],
    "RealNVPMNIST": [-2.5296634885, 0.3657923117, 0.9481892329, -1.0519645519, -0.9603678643, 0.3815353579],
    "RealNVPTabular": [1.1210862715, 0.4044464202, -0.2130783811, -0.5100368637, -0.7353298085],
}
LOG_JOINT = {
    "RealNVP": [[-334.5945143316, -318.1788038824, -334.4387526129],
                [-455.7523602785, -448.3475140871, -461.2104291262],
                [-403.4215709824, -404.6616222520, -405.6033947129]],
    "RealNVPMNIST": [[-104.1328526203, -112.2837925617, -104.9691258136],
                     [-194.4549320850, -191.0032719288, -165.1439579639],
                     [-130.2291929480, -126.4864866492, -108.4599973914]],
    "RealNVPTabular": [[-7.0445477737, -10.0365116371, -9.8254444374], [-5.6188547060, -8.3026148722, -10.8777381823],
                       [-7.4867613015, -5.7673275170, -8.2086751160]],
}


def _data(net: str) -> torch.Tensor:
    return vectors() if net == "RealNVPTabular" else images(net)


@torch.no_grad()
@pytest.mark.parametrize("net", LATENTS)
def test_recorded_numbers(net):
    model, x = FlowGMM.from_reference(*checkpoint(net)).eval(), _data(net)
    z = model.embed(x)
    expected = torch.tensor(LATENTS[net], dtype=torch.float64)
    assert torch.allclose(z[0, :: max(1, z.shape[1] // 6)][:6], expected, rtol=0, atol=1e-9)
    assert torch.allclose(model.log_joint(x), torch.tensor(LOG_JOINT[net], dtype=torch.float64), rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("net", LATENTS)
def test_follows_the_formulas(net):
    state, means = checkpoint(net)
    model, x = FlowGMM.from_reference(state, means, scale=0.7, prior=[0.2, 0.3, 0.5]).eval(), _data(net)
    z, log_det = evaluate(net, state, x)
    log_base, scores = model.class_scores(x)
    assert torch.allclose(model.embed(x), z, rtol=1e-12, atol=1e-12)
    assert torch.allclose(log_base, log_det, rtol=1e-12)
    normals = torch.distributions.Normal(means, 0.7).log_prob(z[:, None]).sum(2)
    assert torch.allclose(scores, normals + torch.tensor([0.2, 0.3, 0.5]).log(), rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("net", LATENTS)
def test_inverse_is_exact(net):
    model, x = FlowGMM.from_reference(*checkpoint(net)).eval(), _data(net)
    v = x if net == "RealNVPTabular" else (x.double() + 0.5) / 256
    assert (model.decode(model.embed(x)) - v).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("net", NETS)
def test_reads_files_of_the_public_code(net, tmp_path):
    """As its trainer writes them: under DataParallel, means that may be trained, an epoch."""
    state, means = checkpoint(net)
    file = tmp_path / "25.pt"
    torch.save({"net": {f"module.{name}": value.float() if value.is_floating_point() else value
                        for name, value in state.items()},
                "epoch": 25, "means": means.float().requires_grad_()}, file)
    model = FlowGMM.from_reference(*read_flowgmm(file)).eval()
    assert not any(parameter.requires_grad for parameter in model.head.parameters())
    z, _ = evaluate(net, state, images(net))
    assert (model.embed(images(net)) - z).abs().max() < 1e-3


def test_float32_is_kept():
    state, means = checkpoint("RealNVPTabular")
    model = FlowGMM.from_reference({name: value.float() for name, value in state.items()}, means)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (model.features, model.classes, model.levels) == (FEATURES, CLASSES, 1)


def _without(name):
    state, means = checkpoint("RealNVPMNIST")
    return {key: value for key, value in state.items() if key != name}, means


def _with(name, value):
    state, means = checkpoint("RealNVPMNIST")
    return state | {name: value}, means


@pytest.mark.parametrize(("given", "message"), [
    (lambda: ({"weight": torch.zeros(2)}, torch.zeros(3, 4)), r"no couplings body\.\*\.rescale\.weight_g"),
    (lambda: _without("body.2.0.module1.st_net.in_skip.conv.weight_g"), "weight_g is missing, expected a tensor of 4"),
    (lambda: _without("body.6.0.module1.st_net.out_norm.bias"),
     r"1 missing \(body\.6\.0\.module1\.st_net\.out_norm\.bias"),
    (lambda: _without("body.21.0.module1.rescale.weight_g"), "has 15 couplings and 1 channels"),
    (lambda: _with("body.5.0.module1.weight", torch.zeros(1)), r"1 unknown \(body\.5\.0\.module1\.weight"),
    (lambda: _with("body.7.0.module1.rescale.weight_g", torch.zeros(3, 1, 1)),
     r"weight_g has shape \(3, 1, 1\), expected \(2, 1, 1\)"),
    (lambda: (checkpoint("RealNVPMNIST")[0], torch.zeros(3, 60)), r"means \(3, 60\), expected .* a square image"),
    (lambda: (checkpoint("RealNVPTabular")[0], torch.zeros(3, 4)), r"means has shape \(3, 4\), expected \(classes, 5"),
])
def test_refuses_other_state_dicts(given, message):
    with pytest.raises(ValueError, match=message):
        FlowGMM.from_reference(*given())


def test_refuses_other_files(tmp_path):
    file = tmp_path / "model.pt"
    with pytest.raises(FileNotFoundError, match="read_flowgmm: there is no file"):
        read_flowgmm(file)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"is no checkpoint of tensors .*, expected an undamaged <epoch>\.pt"):
        read_flowgmm(file)
    torch.save(checkpoint("RealNVPTabular")[0], file)
    with pytest.raises(ValueError, match="expected a mapping with 'net', a state_dict, and 'means', a tensor"):
        read_flowgmm(file)
