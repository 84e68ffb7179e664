"""AffineCoupling with every split, packing and scale map; the state it carries, and the errors it raises."""

import re

import pytest
import torch
from coupling_cases import MAPS, active_positions, every_split, make_coupling, make_map
from oracles import jacobian_log_det
from torch import nn

from fastflow.nn import AffineCoupling, ConvResidualNet, FlowSequential, ResidualMLP, Split
from fastflow.nn.coupling import PACKINGS
from fastflow.ops import ScaleMap


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", MAPS)
def test_coupling_is_a_bijection_with_its_log_det(name, packing):
    for shape in ((3,), (3, 2, 3)):
        for split in every_split(shape):
            count = split.active_channels(shape[0])
            gain = 0.5 + torch.rand(count)
            coupling = make_coupling(split, shape, make_map(name, len(shape) == 1, gain), packing=packing).double()
            x, start = torch.randn(2, *shape, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
            z, log_det = coupling(x, log_det=start)
            back, log_det_back = coupling.inverse(z, log_det=log_det)
            torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(log_det_back, start, rtol=1e-12, atol=1e-12)
            passive = ~active_positions(split, shape)
            assert torch.equal(z[:, passive], x[:, passive]), split
            with torch.no_grad():
                assert (z != x)[:, ~passive].all(), split
            expected = jacobian_log_det(lambda row, c=coupling: c(row)[0], x)
            torch.testing.assert_close(coupling(x)[1], expected, rtol=1e-10, atol=1e-10)


def test_packings_are_layouts_of_the_same_parameters():
    scale, shift = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    x = torch.randn(4, 6, 5)
    tensors = {
        "scale_shift": torch.cat([scale, shift], dim=1),
        "shift_scale": torch.cat([shift, scale], dim=1),
        "scale_shift_interleaved": torch.stack([scale, shift], dim=2).flatten(1, 2),
        "shift_scale_interleaved": torch.stack([shift, scale], dim=2).flatten(1, 2),
    }
    assert set(tensors) == set(PACKINGS)
    expected = AffineCoupling(lambda passive: (scale, shift))(x)
    for packing, made in tensors.items():
        coupling = AffineCoupling(lambda passive, made=made: made, packing=packing)
        for ours, theirs in zip(coupling(x), expected, strict=True):
            assert torch.equal(ours, theirs), packing


def test_context_reaches_the_conditioner():
    net = ConvResidualNet(2, 4, hidden=8, blocks=1, context_features=3)
    nn.init.normal_(net.output.weight)
    coupling = AffineCoupling(net)
    x, context = torch.randn(5, 4, 3, 3), torch.randn(5, 3)
    z, log_det = coupling(x, context)
    assert (z != coupling(x, -context)[0])[:, 2:].all()
    back, log_det = coupling.inverse(z, context, log_det)
    torch.testing.assert_close(back, x)
    assert torch.equal(log_det, torch.zeros(5))


def test_an_unconditional_coupling_in_a_flow_with_context():
    """One that is said to be so; one that merely cannot take the context is an error that says what to do."""
    x, context = torch.randn(5, 4), torch.randn(5, 3)
    layers = AffineCoupling(nn.Linear(2, 4), conditional=False), AffineCoupling(ResidualMLP(2, 4, 8, 1, 0.0, 3))
    flow = FlowSequential(layers, (4,))
    assert torch.equal(layers[0](x, context)[0], layers[0](x)[0])
    torch.testing.assert_close(flow.inverse(flow(x, context)[0], context)[0], x)
    assert "packing='scale_shift', conditional=False" in repr(flow)
    for net, error in ((nn.Linear(2, 4), TypeError), (ResidualMLP(2, 4), ValueError)):
        with pytest.raises(error) as caught:
            FlowSequential([AffineCoupling(net)], (4,))(x, context)
        assert caught.value.__notes__ == [
            f"AffineCoupling: conditioner {type(net).__name__} was called with (passive, context); if it reads no "
            "context, build the coupling with conditional=False"
        ]


def test_a_conditional_map_of_all_channels():
    """With nothing passive, the context alone makes scale and shift."""
    net = nn.Linear(3, 8)
    coupling = AffineCoupling(lambda passive, context: net(context), Split.halves(passive=0))
    x, context = torch.randn(5, 4), torch.randn(5, 3)
    torch.testing.assert_close(coupling.inverse(coupling(x, context)[0], context)[0], x)


def test_initialize_starts_the_conditioner():
    coupling = AffineCoupling(ConvResidualNet(2, 4, hidden=8, blocks=1))
    coupling.initialize(torch.randn(16, 4, 3, 3))
    assert coupling.conditioner.norm.initialized


@pytest.mark.parametrize("size", [0.5, 5.0])
def test_default_map_keeps_deep_flows_finite(size):
    """Eight layers with raw scales of that standard deviation: finite both ways, and at a usual size exact."""
    layers = []
    for index in range(8):
        net = nn.Linear(8, 16)
        nn.init.normal_(net.weight, std=size / 8**0.5)
        layers.append(AffineCoupling(net, Split.halves("second" if index % 2 else "first")))
    x = torch.randn(256, 16)
    z, log_det = x, None
    for layer in layers:
        z, log_det = layer(z, log_det=log_det)
    back = z
    for layer in reversed(layers):
        back, log_det = layer.inverse(back, log_det=log_det)
    assert z.isfinite().all()
    assert back.isfinite().all()
    assert log_det.isfinite().all()
    if size < 1:
        torch.testing.assert_close(back, x)
        torch.testing.assert_close(log_det, torch.zeros(256))


def test_gain_is_learned():
    given = torch.full((2,), 0.5)
    coupling = make_coupling(Split.halves(), (4,), ScaleMap("tanh", gain=given))
    assert isinstance(coupling.gain, nn.Parameter)
    z, log_det = coupling(torch.randn(8, 4))
    (z.sum() + log_det.sum()).backward()
    assert coupling.gain.grad.abs().min() > 0
    with torch.no_grad():
        coupling.gain.add_(1)
    assert torch.equal(given, torch.full((2,), 0.5))
    assert (coupling(torch.randn(8, 4))[1] != log_det).all()
    shared = nn.Parameter(given)
    assert make_coupling(Split.halves(), (4,), ScaleMap("tanh", gain=shared)).gain is shared
    assert make_coupling(Split.halves(), (4,), ScaleMap("tanh")).gain is None


def test_state_dict_carries_gain_and_mask():
    shape = (2, 4, 4)
    masks = [torch.rand(shape) < 0.5 for _ in range(2)]
    one, other = (make_coupling(Split.mask(mask), shape, ScaleMap("tanh", gain=torch.rand(2))) for mask in masks)
    x = torch.randn(3, *shape)
    assert set(one.state_dict()) == {"gain", "mask", "conditioner.weight", "conditioner.bias"}
    other.load_state_dict(one.state_dict())
    for ours, theirs in zip(other(x), one(x), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(masks[1], other.split.passive_mask)
    assert set(make_coupling(Split.halves(), (4,)).state_dict()) == {"conditioner.weight", "conditioner.bias"}


def test_one_split_serves_many_modules():
    """Each has a mask of its own, so that a checkpoint format without aliases can hold them."""
    board = Split.checkerboard((1, 4, 4))
    one, other = make_coupling(board, (1, 4, 4)), make_coupling(board, (1, 4, 4))
    assert one.mask.data_ptr() != other.mask.data_ptr()


def test_empty_batch():
    for shape in ((4,), (4, 3, 3)):
        for split in every_split(shape):
            x = torch.zeros(0, *shape)
            z, log_det = make_coupling(split, shape)(x)
            assert (z.shape, log_det.shape) == (x.shape, (0,))


def test_repr():
    assert repr(AffineCoupling(nn.Linear(2, 4))) == (
        "AffineCoupling(\n"
        "  Split.halves(active='second'), ScaleMap('sigmoid', bias=2.0, eps=0.001, shift_first=True),"
        " packing='scale_shift'\n"
        "  (conditioner): Linear(in_features=2, out_features=4, bias=True)\n"
        ")"
    )
    assert "gain" not in repr(make_coupling(Split.halves(), (4,), ScaleMap("tanh", gain=torch.ones(2))))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: AffineCoupling(None), TypeError, "AffineCoupling: conditioner is NoneType, expected an nn.Module"),
        (lambda: AffineCoupling(nn.Identity(), "halves"), TypeError, "AffineCoupling: split is str, expected a Split"),
        (lambda: AffineCoupling(nn.Identity(), scale_map="exp"), TypeError, "AffineCoupling: scale_map is str, expec"),
        (lambda: AffineCoupling(nn.Identity(), packing="halves"), ValueError, "AffineCoupling: packing is 'halves', "),
    ],
)
def test_bad_settings(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


x = torch.zeros(4, 6)
additive = ScaleMap("additive")


@pytest.mark.parametrize(
    ("made", "settings", "x", "message"),
    [
        (x[:, :4], {}, x, "AffineCoupling: conditioner returned shape (4, 4), expected scale_shift, of shape (4, 6) for"
                          " the 3 active of 6 channels of x (4, 6)"),
        (x[:1], {}, x, "conditioner returned shape (1, 6), expected scale_shift, of shape (4, 6)"),
        ((x, x), {}, x, "conditioner returned (shape (4, 6), shape (4, 6)), expected the pair (scale, shift), each of"
                        " shape (4, 3)"),
        ((x,), {}, x, "conditioner returned (shape (4, 6)), expected the pair"),
        (None, {}, x, "conditioner returned NoneType, expected scale_shift, of shape (4, 6)"),
        (x, {"scale_map": additive}, x, "conditioner returned shape (4, 6), expected the shift of shape (4, 3)"),
        (x, {}, torch.zeros(6), "AffineCoupling: x has shape (6,), expected [B, C, *spatial]"),
        (x, {}, torch.zeros(4, 1), "Split.halves(active='second'): x has 1 channel(s), expected at least 2"),
        (x, {"split": Split.interleaved()}, torch.zeros(4, 1), "x has 1 channel(s), expected at least 2"),
        (x, {"split": Split.halves(passive=6)}, x, "x has 6 channel(s), expected at least 7"),
        (x, {"split": Split.checkerboard((5,))}, x, "Split.checkerboard(shape=(5,), parity=0): a sample has shape (6,),"
                                                    " expected (5,)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_bad_input(made, settings, x, message, direction):
    coupling = AffineCoupling(lambda passive: made, **settings)
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(coupling, direction)(x)


def test_shapes_are_checked_before_any_data():
    assert make_coupling(Split.halves(), (4, 3, 3)).output_shape((4, 3, 3)) == (4, 3, 3)
    with pytest.raises(ValueError, match="x has 1 channel"):
        AffineCoupling(nn.Identity()).output_shape((1, 28, 28))
    with pytest.raises(ValueError, match="a sample has shape"):
        make_coupling(Split.checkerboard((1, 4, 4)), (1, 4, 4)).output_shape((1, 8, 8))
