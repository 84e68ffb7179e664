"""Composition: round trips, Jacobians, multi-scale order, inverse first, shapes checked early, compilation."""

import pytest
import torch
from bijections import assert_inverts, assert_log_det, scatter
from torch.autograd import gradcheck

from fastflow.models import conditional_flow, conv_trunk, vector_trunk
from fastflow.nn import (
    ActNorm,
    AffineCoupling,
    ChannelMix,
    ConvResidualNet,
    FactorOut,
    Flatten,
    FlowSequential,
    Logit,
    ResidualMLP,
    Split,
    Squeeze,
)


def _image_flow(order: str = "position") -> FlowSequential:
    """Every layer kind on (1, 8, 8): two scales, both couplings."""
    return FlowSequential([
        Logit(), ChannelMix(1), AffineCoupling(ConvResidualNet(1, 2, 6, 1), Split.checkerboard((1, 8, 8))), ActNorm(1),
        Squeeze(order), ChannelMix(4, "plu"), AffineCoupling(ConvResidualNet(2, 4, 6, 1), Split.halves("first")),
        AffineCoupling(ConvResidualNet(2, 4, 6, 1), Split.halves("second")), ActNorm(4), FactorOut(),
        Squeeze(order), ActNorm(8), FactorOut(), Flatten((4, 2, 2)), ChannelMix(16),
        AffineCoupling(ResidualMLP(8, 16, 6, 1)),
    ], (1, 8, 8))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("order", ["position", "channel"])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_inverts(dtype, order, rows):
    assert_inverts(scatter(_image_flow(order)).to(dtype), torch.rand(rows, 1, 8, 8, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inverts_odd_sizes(dtype):
    layers = []
    for step in range(3):
        board = Split.checkerboard((4, 7, 7), parity=step % 2)
        layers += [ChannelMix(4), AffineCoupling(ConvResidualNet(4, 8, 6, 1), board), ActNorm(4)]
    assert_inverts(scatter(FlowSequential(layers, (4, 7, 7))).to(dtype), torch.randn(2, 4, 7, 7, dtype=dtype))


def test_log_det_is_the_jacobian():
    board = Split.checkerboard((1, 4, 4))
    layers = [Logit(), ActNorm(1), AffineCoupling(ConvResidualNet(1, 2, 5, 1), board), Squeeze(), ChannelMix(4),
              FactorOut(), AffineCoupling(ConvResidualNet(1, 2, 5, 1))]  # fmt: skip
    flow = scatter(FlowSequential(layers, (1, 4, 4)).double())
    assert_log_det(flow, torch.rand(2, 1, 4, 4, dtype=torch.float64))


def test_conditional_log_det_is_the_jacobian():
    flow = scatter(conditional_flow(8, 3, levels=2, steps=1, hidden=6, blocks=1).double())
    assert_log_det(flow, torch.randn(2, 8, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64))


def test_gradients():
    layers = [ActNorm(4), ChannelMix(4), AffineCoupling(ResidualMLP(2, 4, 5, 1)), FactorOut()]
    flow = scatter(FlowSequential(layers, (4,)).double())
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: flow(x), (x, *flow.parameters()))
    assert gradcheck(lambda x, *_: flow.inverse(x), (x, *flow.parameters()))


def test_latents_lie_in_the_order_of_leaving():
    flow = FlowSequential([FactorOut(), Squeeze(), FactorOut()], (4, 4, 4))
    x = torch.randn(2, 4, 4, 4)
    z, log_det = flow(x)
    squeezed = Squeeze()(x[:, 2:])[0]
    assert torch.equal(z, torch.cat([x[:, :2].flatten(1), squeezed[:, :4].flatten(1), squeezed[:, 4:].flatten(1)], 1))
    assert torch.equal(log_det, torch.zeros(2))
    assert flow.aux_features == 32 + 16
    assert flow.last_shape == (4, 2, 2)


def test_inverse_may_come_first():
    flow = scatter(_image_flow())
    z = torch.randn(3, 64)
    x, log_det = flow.inverse(z)
    again, returned = flow(x, log_det=log_det)
    assert torch.allclose(again, z, atol=1e-4)
    assert torch.allclose(returned, torch.zeros(3), atol=1e-3)


def test_single_scale_keeps_its_shape():
    flow = FlowSequential([Logit(), Squeeze()], (1, 4, 4))
    assert flow(torch.rand(2, 1, 4, 4))[0].shape == (2, 4, 2, 2)
    assert flow.output_shape((1, 4, 4)) == (4, 2, 2)
    nested = FlowSequential([flow, ActNorm(4)], (1, 4, 4))
    assert_inverts(nested, torch.rand(2, 1, 4, 4))


@pytest.mark.parametrize(("layers", "shape", "message"), [
    ([Logit(), Squeeze()], (1, 7, 7), r"layer 1 \(Squeeze\) does not fit samples of shape \(1, 7, 7\): .* even"),
    ([ActNorm(3)], (2, 4, 4), r"layer 0 \(ActNorm\) does not fit .* \(2, 4, 4\): it normalises 3 channels"),
    ([ChannelMix(3)], (2,), r"layer 0 \(ChannelMix\) .*: it mixes 3 channels"),
    ([FactorOut()], (2, 4, 4), r"layer 0 \(FactorOut\) .* at least 3 channels"),
    ([Flatten((2, 4))], (2, 5), r"layer 0 \(Flatten\) .* built for samples of shape \(2, 4\)"),
    ([FlowSequential([], (3,))], (2,), r"layer 0 \(FlowSequential\) .* built for samples of shape \(3,\)"),
])
def test_layers_that_do_not_fit(layers, shape, message):
    with pytest.raises(ValueError, match=f"FlowSequential: {message}"):
        FlowSequential(layers, shape)


def test_what_is_no_bijection():
    with pytest.raises(TypeError, match=r"FlowSequential: layer 1 \(ReLU\) is no Bijection"):
        FlowSequential([Logit(), torch.nn.ReLU()], (1,))


def test_batches_that_do_not_fit():
    flow = _image_flow()
    with pytest.raises(ValueError, match=r"FlowSequential: x has shape \(2, 1, 8, 7\), expected \(B, 1, 8, 8\)"):
        flow(torch.rand(2, 1, 8, 7))
    with pytest.raises(ValueError, match=r"FlowSequential: z has shape \(2, 63\), expected \(B, 64\)"):
        flow.inverse(torch.rand(2, 63))
    with pytest.raises(ValueError, match=r"FlowSequential: log_det has shape \(3,\), expected \(2,\)"):
        flow(torch.rand(2, 1, 8, 8), log_det=torch.zeros(3))


def test_state_dict_keeps_the_started_layers():
    flow, x = _image_flow(), torch.rand(16, 1, 8, 8)
    flow.initialize(x)
    scatter(flow)
    loaded = _image_flow()
    loaded.load_state_dict(flow.state_dict())
    assert all(bool(value) for name, value in loaded.named_buffers() if name.endswith("initialized"))
    for mine, theirs in zip(loaded(x), flow(x), strict=True):
        assert torch.equal(mine, theirs)


def test_initialize_reaches_the_conditioners_and_keeps_their_mode():
    flow = scatter(_image_flow())
    flow.layers[2].conditioner.eval()
    flow.initialize(torch.rand(16, 1, 8, 8))
    assert all(bool(value) for name, value in flow.named_buffers() if name.endswith("initialized"))
    assert flow.training
    assert not flow.layers[2].conditioner.blocks.training


def test_compiles_in_one_graph():
    flow, x = scatter(_image_flow()), torch.rand(4, 1, 8, 8)
    # Without code generation, which takes Inductor minutes for so many small layers.
    z, log_det = torch.compile(flow, fullgraph=True, backend="aot_eager")(x)
    expected = flow(x)
    assert torch.allclose(z, expected[0], atol=1e-5)
    assert torch.allclose(log_det, expected[1], atol=1e-4)
    (z.sum() + log_det.sum()).backward()
    compiled = [parameter.grad.clone() for parameter in flow.parameters()]
    flow.zero_grad()
    (expected[0].sum() + expected[1].sum()).backward()
    for gradient, parameter in zip(compiled, flow.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_compiles_by_inductor():
    layers = [Logit(), ActNorm(4), ChannelMix(4, "plu"), AffineCoupling(ResidualMLP(2, 4, 4, 1)), FactorOut()]
    flow, x = scatter(FlowSequential(layers, (4,))), torch.rand(5, 4)
    for mine, expected in zip(torch.compile(flow, fullgraph=True)(x), flow(x), strict=True):
        assert torch.allclose(mine, expected, atol=1e-4)


@pytest.mark.parametrize("trunk", [
    lambda: conv_trunk((2, 8, 8), scales=2, masked_steps=2, channel_steps=1, hidden=6, blocks=1),
    lambda: vector_trunk((1, 4, 4), scales=3, steps=1, hidden=6),
])
def test_trunks_invert(trunk):
    flow = scatter(trunk(), 0.05).double()
    assert_inverts(flow, torch.rand(3, *flow.shape, dtype=torch.float64))


@pytest.mark.parametrize("conditional", [False, True])
def test_mass_is_one(conditional):
    """The integral of a 2-D density over a grid (seed-systems 12.11)."""
    context = torch.randn(1, 3) if conditional else None
    flow = FlowSequential([layer for _ in range(3) for layer in (
        ChannelMix(2), AffineCoupling(ResidualMLP(1, 2, 8, 1, context_features=3 * conditional), Split.halves("first")),
        AffineCoupling(ResidualMLP(1, 2, 8, 1, context_features=3 * conditional)), ActNorm(2))], (2,))  # fmt: skip
    scatter(flow, 0.2)
    axis = torch.linspace(-14, 14, 561)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        z, log_det = flow(points, None if context is None else context.expand(len(points), -1))
    log_prob = log_det - 0.5 * z.square().sum(1) - torch.log(torch.tensor(2 * torch.pi))
    mass = log_prob.double().exp().sum() * (axis[1] - axis[0]).double() ** 2
    assert abs(mass.item() - 1) < 0.01
