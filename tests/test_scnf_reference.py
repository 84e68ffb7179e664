"""The public formulation that speed is measured against: its size, its kernels, its numbers, its step."""

import math

import pytest
import torch
from reference_oracle import CLASSES, checkpoint, reference
from scnf_kernels import PUBLISHED, count_operators, counted_calls
from scnf_reference import SCNFReference
from scnf_step import fastflow_loss, models, reference_loss, training_step

from fastflow.bench.timing import peak_memory
from fastflow.models import SCNF


@pytest.fixture(scope="module")
def mnist() -> SCNFReference:
    return SCNFReference()


@pytest.mark.parametrize(("part", "parameters"), [("trunk", 6_299_987), ("head", 9_574_676)])
def test_it_is_as_large_as_the_public_code_and_launches_as_many_kernels(mnist, part, parameters):
    call, inputs = counted_calls(mnist)[part]
    assert sum(each.numel() for each in inputs if isinstance(each, torch.nn.Parameter)) == parameters
    for counted, published in zip(count_operators(call, inputs), PUBLISHED[part], strict=True):
        assert abs(counted - published) <= 0.05 * published


def test_every_rival_has_the_same_weights():
    reference, plain, reversible = (model.double() for model in models("cpu").values())
    reference.prior.classes.probs = reference.prior.classes.probs.double()
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        expected = reference.log_joint(x)
        for model in (plain, reversible):
            torch.testing.assert_close(model.log_joint(x), expected)


def test_both_losses_have_the_same_gradients():
    """They differ by log p(y) of the labelled rows, a constant."""
    public = reference()
    state = checkpoint()
    public.load_state_dict({name.replace("flow.module.", "flow."): value for name, value in state.items()})
    public.prior.classes = torch.distributions.Categorical(probs=torch.full((CLASSES,), 1 / CLASSES).double())
    ours = SCNF.from_reference(state)
    images, labels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8), torch.tensor([2, -1, 0, -1, -1])
    noise = torch.rand(images.shape, dtype=torch.float64)
    expected, loss = reference_loss(public, images, noise, labels), fastflow_loss(ours, images, noise, labels)
    torch.testing.assert_close(loss, expected + 2 / 5 * math.log(CLASSES), rtol=0, atol=1e-6)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(ours.head.embedding.grad, public.prior.flow.embeddings.weight.grad)
    torch.testing.assert_close(ours.aux_base.rho.grad, public.prior.shallow_prior.logsigma.grad)
    first = ours.trunk.layers[2].conditioner.input.weight.grad
    torch.testing.assert_close(first, public.flow.modules_[2].net[1].weight.grad)


def test_a_reversible_step_needs_at_most_a_quarter_of_the_memory():
    """Of 8 rows: the gradients of the head's weights, which come all at once (38 MB), are not yet most of it."""
    rivals, live = models("cpu"), {}
    for name in ("reference", "fastflow reversible"):
        model = rivals[name]
        live[name] = peak_memory(training_step(model, 8, "cpu", "fp32", update=False))
        assert all(each.grad.isfinite().all() for each in model.parameters() if each.requires_grad)
    assert live["fastflow reversible"] <= live["reference"] / 4


def test_norms_that_have_not_started_are_refused():
    public = reference()
    public.flow.modules_[3].requires_init.fill_(1)
    with pytest.raises(ValueError, match="requires_init is set, expected weights of norms that have started"):
        public.flow(torch.rand(1, 1, 8, 8).double())
