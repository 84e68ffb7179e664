"""Checkpoints of the public SCNF code: our model gives its numbers, inverts where it does not, and refuses others."""

import pytest
import torch
from reference_oracle import PROBABILITIES, checkpoint, evaluate, images

from fastflow.models import SCNF, read_reference

# Recorded in float64 from SamsungLabs/semi-supervised-NFs itself (its Flow, ResNetBlock, MaskedCouplingLayer,
# CouplingLayer, get_flow_cond, DiscreteConditionalFlowPDF), with `checkpoint()` loaded strictly into 8 x 8 trunks of
# width 4 and a head of width 5, on `images()`; its log|det| of 1x1 convolutions kept in float64.
LOG_JOINT = torch.tensor([
    [-16.4674174605, -15.7809875896, -15.3774633898],
    [-17.0507785803, -16.3549082528, -15.9475681693],
    [-19.2350200179, -18.5428069833, -18.1380934778],
], dtype=torch.float64)
LATENTS = torch.tensor([-2.2226110080e00, -1.6025232453e-04, 1.1567479344e00, -5.4995967578e-01, -4.3360633315e-02,
                        -8.9126879663e-02, 6.7084082470e-01, -7.9238595062e-01], dtype=torch.float64)
HEAD_LATENTS = torch.tensor([-0.1446819439, -0.2141481294, -0.1865323008, 0.1464246670, -0.1573529248, -0.0260616122],
                            dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> SCNF:
    return SCNF.from_reference(checkpoint(), prior=PROBABILITIES)


def _latents(model: SCNF, x: torch.Tensor) -> torch.Tensor:
    return model.trunk(x)[0]


@torch.no_grad()
def test_recorded_numbers(model):
    x = images()
    assert torch.allclose(model.log_joint(x), LOG_JOINT, rtol=0, atol=1e-6)  # the prior was rounded to float32
    assert torch.allclose(model.log_prob(x), LOG_JOINT.logsumexp(1), rtol=0, atol=1e-6)
    assert torch.allclose(_latents(model, x)[0, ::9], LATENTS, rtol=0, atol=1e-9)
    assert torch.allclose(model.embed(x, 2)[1][1, ::3], HEAD_LATENTS, rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_follows_the_formulas(dtype):
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in checkpoint().items()}
    model, x = SCNF.from_reference(state, prior=PROBABILITIES), images().to(dtype)
    z, z_h, log_joint = evaluate({name: value.double() for name, value in state.items()}, x.double())
    scale = 1 if dtype == torch.float32 else 1e-9
    assert (_latents(model, x) - z).abs().max() <= 1e-5 * scale
    assert (model.log_joint(x) - log_joint).abs().max() <= max(2e-4 * scale, 1e-6)
    for label in range(3):
        z_f, own = model.embed(x, label)
        assert torch.equal(z_f, _latents(model, x)[:, -16:])
        assert (own - z_h[:, label]).abs().max() <= 1e-5 * scale
    assert torch.equal(model.predict(x), log_joint.argmax(1))


@torch.no_grad()
def test_inverse_is_exact(model):
    x = images()
    assert (model.trunk.inverse(_latents(model, x))[0] - x).abs().max() <= 1e-12
    z_f, z_h = model.embed(x, 1)
    labels = torch.ones(3, dtype=torch.int64)
    assert (model.head.decode(z_h, labels) - z_f).abs().max() <= 1e-12
    assert (model.reconstruct(x, 1, source=1) - x).abs().max() <= 1e-12


def test_layers_are_started_unless_the_checkpoint_says_otherwise(model):
    assert all(bool(value) for name, value in model.named_buffers() if name.endswith("initialized"))
    state = {name: torch.ones_like(value) if name.endswith("requires_init") else value
             for name, value in checkpoint().items()}  # as in the code's model_init.torch
    fresh = SCNF.from_reference(state)
    assert not any(bool(value) for name, value in fresh.named_buffers() if name.endswith("initialized"))


def test_names_without_and_with_more_of_data_parallel(model):
    state = {name.replace("flow.module.", "flow.").replace("prior.flow.", "prior.flow.module."): value
             for name, value in checkpoint().items()}
    assert torch.equal(SCNF.from_reference(state, PROBABILITIES).log_prob(images()), model.log_prob(images()))


def test_prior_is_uniform_unless_given():
    prior = SCNF.from_reference(checkpoint()).head.prior
    assert torch.allclose(prior.log_prob().exp(), torch.full((3,), 1 / 3).double())


def _without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: {}, "no masked couplings"),
    (lambda s: _without(s, "prior.flow.embeddings.weight"), r"has no prior\.flow\.embeddings\.weight"),
    (lambda s: _without(s, "flow.module.modules_.4.W"), r"1 missing \(flow\.modules_\.4\.W\)"),
    (lambda s: s | {"flow.module.modules_.99.W": torch.eye(1)}, r"1 unknown \(flow\.modules_\.99\.W\)"),
    (lambda s: s | {"prior.flow.embeddings.weight": torch.ones(())}, r"has shape \(\), expected 2 dimensions"),
    (lambda s: s | {"flow.module.modules_.2.mask": torch.ones(0)}, r"has shape \(0,\), expected 4 dimensions"),
    (lambda s: s | {"flow.module.modules_.4.W": torch.eye(2)},
     r"1 of the wrong shape \(flow\.modules_\.4\.W has shape \(2, 2\), expected \(1, 1\)\)"),
    (lambda s: s | {"prior.deep_prior.mean": torch.ones(16)}, r"prior\.deep_prior\.mean is not the constant"),
    (lambda s: s | {"flow.module.modules_.2.mask": torch.ones(1, 1, 8, 8)}, r"modules_\.2\.mask is not the constant"),
    (lambda s: {name.replace(".W", ".vec_0"): value for name, value in s.items()}, "missing .* unknown"),
])
def test_refuses_other_state_dicts(change, message):
    with pytest.raises(ValueError, match=rf"SCNF\.from_reference: .*{message}"):
        SCNF.from_reference(change(checkpoint()))


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_files(tmp_path, model, zipped):
    path = tmp_path / "model.torch"
    torch.save(checkpoint(), path, _use_new_zipfile_serialization=zipped)  # the published file is of 2019: not zipped
    loaded = SCNF.from_reference(read_reference(path), PROBABILITIES)
    assert torch.equal(loaded.log_prob(images()), model.log_prob(images()))


def test_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="read_reference: there is no file"):
        read_reference(tmp_path / "absent.torch")
    torch.save(checkpoint(), tmp_path / "old", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old").read_bytes()
    for name, content in (("empty", b""), ("text", b"no checkpoint"), ("cut", b"PK\x03\x04"), ("stack", b"\x80\x02u."),
                          *((f"old-{size}", old[:size]) for size in range(1, 4000, 97))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is no checkpoint of tensors"):
            read_reference(tmp_path / name)
    torch.save({1: torch.ones(1)}, tmp_path / "numbers")
    with pytest.raises(ValueError, match="holds dict, expected a state_dict of tensors"):
        read_reference(tmp_path / "numbers")
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(ValueError, match="holds list, expected a state_dict of tensors"):
        read_reference(tmp_path / "list")


def test_runs_no_code_of_a_file(tmp_path):
    torch.save({"a": _Harmful()}, tmp_path / "harmful")
    with pytest.raises(ValueError, match="is no checkpoint of tensors") as caught:
        read_reference(tmp_path / "harmful")
    assert "weights_only" not in str(caught.value)


class _Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))
