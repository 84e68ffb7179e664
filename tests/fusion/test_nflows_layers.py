"""nflows' couplings, ActNorm, shapes and sampling, fused: what is particular to one of them."""

import copy
import warnings

import pytest
import torch
from agreement import perturbed
from models import Net
from nflows_cases import CONTEXT, Conditioned, multiscale
from oracles import assert_three_way
from peers import nflows
from torch import Tensor, nn

from fastflow import fuse
from fastflow.fusion.layer import is_fused
from fastflow.fusion.swap import survey

T, D = nflows.transforms, nflows.distributions


def reason(layer: nn.Module) -> str:
    return survey(layer)[0].reason


# Couplings


def test_the_default_scale_activation_is_known_by_its_code():
    def reason_with(activation):
        layer = T.AffineCouplingTransform([0, 1], Net)
        layer.scale_activation = activation
        return reason(layer)

    assert reason_with(lambda raw: torch.sigmoid(raw + 2) + 1e-3) == ""
    for other in (lambda raw: (nn.functional.softplus(raw) + 1e-3).clamp(0, 3), torch.exp, nn.Sigmoid(),
                  lambda raw: torch.sigmoid(raw + 2) + 1e-2):
        assert reason_with(other) == "its scale_activation is not the default, sigmoid(x + 2) + 1e-3"


@pytest.mark.parametrize("mask", [[1, 1], [0, 0]])
def test_a_mask_without_two_parts_is_left(mask):
    layer = T.AffineCouplingTransform(mask, lambda inputs, outputs: nn.Identity())
    assert reason(layer) == "its mask leaves one part empty"


def test_couplings_check_their_inputs_as_before():
    layer = fuse(T.AffineCouplingTransform([0, 1], Net))
    with pytest.raises(ValueError, match="Inputs must be a 2D or a 4D tensor"):
        layer(torch.randn(3, 2, 4))
    with pytest.raises(ValueError, match="Expected features = 2, got 3"):
        layer.inverse(torch.randn(3, 3))


# ActNorm


@pytest.mark.parametrize("shape", [(32, 6), (5, 6, 3, 4)])
def test_the_first_training_batch_initialises_as_in_the_original(shape):
    eager, x = T.ActNorm(6), 3 * torch.randn(shape) + 1
    exact, fused = copy.deepcopy(eager).double(), fuse(copy.deepcopy(eager))
    fused.eval()(x)
    fused.inverse(x)
    assert not fused.initialized
    fused.train()
    results = [layer(given) for layer, given in ((fused, x), (eager, x), (exact, x.double()))]
    for mine, theirs, truth in zip(*results, strict=True):
        assert_three_way(mine, theirs, truth)
    assert fused.initialized
    torch.testing.assert_close(fused.state_dict(), eager.state_dict())
    torch.testing.assert_close(fused(2 * x), eager(2 * x))
    assert_three_way(fused.log_scale, eager.log_scale, exact.log_scale)


@pytest.mark.parametrize("shape", [(0, 6), (1, 6), (0, 6, 2, 2), (1, 6, 1, 1)])
def test_a_first_batch_of_too_few_values_does_not_initialise(shape):
    layer, x = fuse(T.ActNorm(6)), torch.randn(shape)
    with pytest.warns(UserWarning, match="fewer than 2 values a channel, expected more: the layer stays uninitialised"):
        z, log_det = layer(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(len(x)))
    assert not layer.initialized
    layer(torch.randn(16, 6))
    assert layer.initialized
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layer(x)[0].isfinite().all()


def test_an_image_of_one_row_initialises():
    layer = fuse(T.ActNorm(3))
    z, _ = layer(torch.randn(1, 3, 5, 5))
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3))


def test_a_loaded_initialisation_is_not_redone():
    done, new = T.ActNorm(4), fuse(T.ActNorm(4))
    done(torch.randn(8, 4))
    new.load_state_dict(done.state_dict())
    x = 5 * torch.randn(8, 4)
    torch.testing.assert_close(new(x), done(x))


@pytest.mark.parametrize("shape", [(16, 6), (4, 6, 3, 3)])
def test_a_whole_graph_initialises_too(shape):
    layer = fuse(T.ActNorm(6))
    other, x = copy.deepcopy(layer), torch.randn(shape)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for each in (x, 3 * x):
        z, log_det = compiled(each)
        torch.testing.assert_close((z, log_det), other(each))
    (z.sum() + log_det.sum()).backward()
    assert layer.shift.grad.isfinite().all()
    assert layer.initialized


# Shapes


def test_a_loaded_permutation_is_followed_in_both_directions():
    one, other = fuse(T.ReversePermutation(5)), T.Permutation(torch.tensor([1, 2, 0, 4, 3]))
    one.load_state_dict(other.state_dict())
    x = torch.randn(3, 5)
    assert torch.equal(one(x)[0], other(x)[0])
    assert torch.equal(one.inverse(x)[0], other.inverse(x)[0])


def test_permutations_check_their_inputs_as_before():
    for layer in (T.RandomPermutation(5, dim=2), fuse(T.RandomPermutation(5, dim=2))):
        with pytest.raises(ValueError, match="No dimension 2 in inputs"):
            layer(torch.randn(3, 5))
        with pytest.raises(ValueError, match="Dimension 2 in inputs must be of size 5"):
            layer.inverse(torch.randn(3, 5, 4))


def test_squeeze_undoes_a_factor_that_the_original_refuses():
    layer, x = T.SqueezeTransform(3), torch.randn(2, 1, 6, 9)
    z, _ = layer(x)
    with pytest.raises(ValueError, match="Invalid number of channel dimensions"):
        layer.inverse(z)
    fuse(layer)
    assert torch.equal(layer(x)[0], z)
    assert torch.equal(layer.inverse(z)[0], x)


def test_squeeze_checks_its_inputs():
    layer = fuse(T.SqueezeTransform())
    for call, shape, message in ((layer, (2, 4), "4 dimensions"), (layer, (2, 1, 3, 4), "not compatible"),
                                 (layer.inverse, (2, 4), "4 dimensions"), (layer.inverse, (2, 6, 1, 1), "Invalid")):
        with pytest.raises(ValueError, match=message):
            call(torch.randn(shape))


def test_multiscale_checks_its_inputs_as_before():
    whole = T.MultiscaleCompositeTransform(2)
    whole.add_transform(T.RandomPermutation(4), (4,))
    with pytest.raises(RuntimeError, match=r"Expecting exactly 2 transform\(s\) to be added"):
        fuse(whole)(torch.randn(3, 4))
    whole.add_transform(T.RandomPermutation(2), (2,))
    with pytest.raises(ValueError, match="Expecting NxD inputs"):
        whole.inverse(torch.randn(3, 4, 1))
    with pytest.raises(ValueError, match="No split_dim in inputs"):
        whole(torch.randn(3))
    with pytest.raises(AssertionError):
        whole(torch.randn(3, 4, 2))


# Sampling


def flow_of(transform: nn.Module, base: nn.Module | None = None, embedding: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return perturbed(nflows.flows.Flow(transform, base or D.StandardNormal([6]), embedding)).eval()


def conditional() -> nn.Module:
    return T.AffineCouplingTransform([0, 1, 0, 1, 0, 1], Conditioned)


def drawn(flow: nn.Module, count: int, context: Tensor | None = None) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    with torch.no_grad():
        return flow.sample(count, context), *flow.sample_and_log_prob(count, context)


@pytest.mark.parametrize("contexts", [None, 3])
def test_sampling_in_float32_gives_the_numbers_of_the_original(contexts):
    flow = flow_of(conditional() if contexts else T.LULinear(6), embedding=nn.Linear(4, CONTEXT) if contexts else None)
    context = torch.randn(contexts, 4) if contexts else None
    for mine, theirs in zip(drawn(fuse(copy.deepcopy(flow)), 5, context), drawn(flow, 5, context), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_float64_flow_samples_in_float64(when):
    flow = flow_of(conditional())
    flow = fuse(flow.double()) if when == "before" else fuse(flow).double()
    context = torch.randn(3, CONTEXT, dtype=torch.float64)
    samples, again, log_prob = drawn(flow, 5, context)
    assert samples.dtype == again.dtype == log_prob.dtype == torch.float64
    assert samples.shape == (3, 5, 6)
    torch.testing.assert_close(log_prob.flatten(), flow.log_prob(again.flatten(0, 1), context.repeat_interleave(5, 0)))
    assert (samples != samples.float()).any()


def test_samples_in_batches_and_for_no_contexts():
    flow = fuse(flow_of(conditional()))
    assert flow.sample(5, torch.randn(0, CONTEXT)).shape == (0, 5, 6)
    assert fuse(flow_of(T.LULinear(6))).sample(5, batch_size=2).shape == (5, 6)


def test_a_transform_without_parameters_samples_in_the_default_dtype():
    assert fuse(flow_of(T.ReversePermutation(6))).sample(3).dtype == torch.float32


@pytest.mark.parametrize("count", [0, -1, 2.0])
def test_a_count_that_is_none_is_refused_as_before(count):
    for flow in (flow_of(T.LULinear(6)), fuse(flow_of(T.LULinear(6)))):
        for call in (flow.sample, flow.sample_and_log_prob):
            with pytest.raises(TypeError, match="Number of samples must be a positive integer"):
                call(count)


def test_flows_that_are_subclasses_of_the_library_sample_too():
    for flow in (nflows.flows.SimpleRealNVP(6, 8, 2, 1), nflows.flows.MaskedAutoregressiveFlow(6, 8, 2, 1)):
        assert is_fused(fuse(flow.double().eval()))
        assert flow.sample(4).dtype == torch.float64


def test_a_flow_of_another_base_is_left():
    flow = flow_of(conditional(), D.ConditionalDiagonalNormal([6], nn.Linear(CONTEXT, 12)))
    assert reason(flow) == "its base is ConditionalDiagonalNormal, which draws in a dtype of its own"


def test_a_multiscale_flow_samples():
    flow = fuse(flow_of(multiscale((5, 4, 6), 2), D.StandardNormal([120])))
    samples, log_prob = flow.sample_and_log_prob(3)
    assert flow.sample(3).shape == samples.shape == (3, 5, 4, 6)
    torch.testing.assert_close(log_prob, flow.log_prob(samples))
