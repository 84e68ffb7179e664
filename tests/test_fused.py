"""The fused walk: the numbers of layer by layer, in as many passes as its header says, and what it must not fuse."""

import copy

import pytest
import torch
from bijections import assert_inverts, assert_log_det, scatter
from oracles import assert_three_way
from torch.utils._python_dispatch import TorchDispatchMode

from fastflow.models import conv_trunk, vector_trunk
from fastflow.nn import (
    ActNorm,
    AffineCoupling,
    ChannelMix,
    ConvResidualNet,
    FactorOut,
    FlowSequential,
    Permutation,
    ResidualMLP,
    Split,
    Squeeze,
)


def _mix(channels, kind="full"):
    generator = torch.Generator().manual_seed(channels)
    weight = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64)).Q
    return ChannelMix(channels, kind, weight.float())


def _coupling(channels, active="second", passive=None, image=False):
    split = Split.halves(active, passive)
    net = ConvResidualNet if image else ResidualMLP
    return AffineCoupling(net(split.passive_channels(channels), 2 * split.active_channels(channels), 6, 1), split)


def glow(channels, steps, image=False):
    return [layer for _ in range(steps)
            for layer in (ActNorm(channels), _mix(channels), _coupling(channels, image=image))]


def _both(channels, image=False):
    return [_coupling(channels, "first", image=image), _coupling(channels, "second", image=image)]


FLOWS = {
    "glow of vectors": lambda: FlowSequential(glow(6, 3), (6,)),
    "glow of images": lambda: FlowSequential(glow(4, 2, image=True), (4, 4, 6)),
    "both halves, norm last": lambda: FlowSequential([_mix(5, "plu"), *_both(5), ActNorm(5)], (5,)),
    "halves of different sizes": lambda: FlowSequential(
        [_mix(7), _coupling(7, passive=2), _coupling(7, "first", passive=3), _mix(7)], (7,)),
    "two scales": lambda: FlowSequential(
        [*glow(4, 1, True), _mix(4), *_both(4, True), FactorOut(), ActNorm(2), Squeeze(), *glow(8, 2, True),
         *_both(8, True), ActNorm(8), FactorOut(), _mix(4)], (4, 4, 4)),
    "factor out that cuts the first half": lambda: FlowSequential(
        [_mix(6), *_both(6), FactorOut(), _coupling(2), _mix(2)], (6,)),
    "squeezes before and after": lambda: FlowSequential(
        [Squeeze("channel"), _mix(8), Squeeze(undo=True), ActNorm(2), Squeeze(), ActNorm(8), _mix(8), *_both(8, True),
         ActNorm(8), Squeeze("channel", undo=True), Squeeze(factor=4, interleaved=True), _mix(32)], (2, 4, 4)),
    "permutations": lambda: FlowSequential(
        [Permutation.random(6, 1), ActNorm(6), Permutation.reverse(6), _coupling(6), Permutation.reverse(6)], (6,)),
    "norms only": lambda: FlowSequential([ActNorm(3), ActNorm(3), _mix(3), ActNorm(3)], (3, 2, 2)),
    "more channels than the kernels take": lambda: FlowSequential([*glow(70, 1), *_both(70), ActNorm(70)], (70,)),
    "masks between": lambda: FlowSequential(
        [ActNorm(4), _mix(4), AffineCoupling(ConvResidualNet(4, 8, 6, 1), Split.checkerboard((4, 4, 4))), ActNorm(4),
         *glow(4, 1, True), Squeeze()], (4, 4, 4)),
    "a trunk of images": lambda: conv_trunk((1, 8, 8), scales=2, masked_steps=1, channel_steps=2, hidden=6, blocks=1),
    "a trunk of vectors": lambda: vector_trunk((1, 4, 4), steps=2, hidden=8),
}


def layer_by_layer(flow, x, inverse=False):
    """The composition as the layers define it."""
    log_det = x.new_zeros(len(x))
    if inverse:
        left, z = [], x
        if flow.leaving:
            *left, z = x.split([*flow.leaving, x.shape[1] - sum(flow.leaving)], 1)
            z = z.reshape(len(z), *flow.last_shape)
        for layer in reversed(flow.layers):
            z, log_det = (layer.inverse(left.pop(), z), log_det) if isinstance(layer, FactorOut) else (
                layer.inverse(z, None, log_det))
        return z, log_det
    left = []
    for layer in flow.layers:
        if isinstance(layer, FactorOut):
            aux, x = layer(x)
            left.append(aux)
        else:
            x, log_det = layer(x, None, log_det)
    return (torch.cat([*left, x.flatten(1)], 1) if left else x), log_det


@pytest.fixture(params=FLOWS)
def flow(request):
    return scatter(FLOWS[request.param]().double())


def _batch(flow, rows=5):
    return torch.rand(rows, *flow.shape, dtype=torch.float64)


@pytest.mark.parametrize("inverse", [False, True])
def test_same_as_layer_by_layer(flow, inverse):
    x = _batch(flow).requires_grad_()
    if inverse:
        x = flow(x)[0].detach().requires_grad_()
    function = flow.inverse if inverse else flow
    found, expected = function(x), layer_by_layer(flow, x, inverse)
    inputs, weights = (x, *flow.parameters()), tuple(torch.randn_like(each) for each in expected)
    pairs = zip((*found, *torch.autograd.grad(found, inputs, weights)),
                (*expected, *torch.autograd.grad(expected, inputs, weights)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * max(1.0, float(theirs.detach().abs().max())))


def test_inverts(flow):
    assert_inverts(flow, _batch(flow))
    assert_inverts(flow, _batch(flow, rows=0))
    assert_inverts(flow.float(), _batch(flow).float())


def test_log_det_is_the_jacobian():
    assert_log_det(scatter(FLOWS["two scales"]().double()), torch.rand(2, 4, 4, 4, dtype=torch.float64))


class Ops(TorchDispatchMode):
    """The names of the operators, and the elements [B, ...] that this library's move."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.names, self.moved = rows, [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(function.name())
        if function.namespace == "fastflow" and function._opname in ("channel_mix", "affine_coupling"):
            results = [each for each in result if each.dim() > 1]
            inputs = [each for each in args if isinstance(each, torch.Tensor) and each.dim() > 1 and
                      each.shape[0] == self.rows]
            self.moved += sum(each.numel() for each in (*inputs, *results))
        return result


def _conditioner(passive):
    return torch.zeros(passive.shape[0], 2 * passive.shape[1], *passive.shape[2:]).expand(-1, -1, *passive.shape[2:])


@pytest.mark.parametrize("shape", [(8,), (8, 4, 4)], ids=str)
@pytest.mark.parametrize("inverse", [False, True])
def test_a_step_moves_four_times_its_size(shape, inverse):
    steps, rows, size = 4, 3, torch.Size(shape).numel()
    layers = [layer for _ in range(steps) for layer in (ActNorm(8), _mix(8), AffineCoupling(_conditioner))]
    flow, x = FlowSequential([*layers, ActNorm(8)], shape), torch.randn(rows, *shape)
    with torch.no_grad(), Ops(rows) as ops:
        (flow.inverse if inverse else flow)(x)
    assert ops.names.count("fastflow::channel_mix") == steps + 1
    assert ops.names.count("fastflow::affine_coupling") == steps
    assert not {"aten::cat", "aten::slice_scatter", "aten::clone", "aten::contiguous"} & set(ops.names)
    assert ops.moved == rows * size * (4 * steps + 2)


def test_factor_out_of_halves_copies_nothing():
    flow = FlowSequential([_mix(8), AffineCoupling(_conditioner), FactorOut(), _mix(4)], (8,))
    with torch.no_grad(), Ops(3) as ops:
        flow(torch.randn(3, 8))
    assert ops.names.count("aten::cat") == 1  # of the latents


@pytest.mark.parametrize("inverse", [False, True])
def test_a_squeeze_beside_a_map_copies_nothing(inverse):
    flow = FlowSequential([Squeeze(), _mix(8), AffineCoupling(_conditioner)], (2, 4, 6))
    with torch.no_grad(), Ops(3) as ops:
        (flow.inverse if inverse else flow)(torch.randn(3, *flow.output_shape(flow.shape) if inverse else flow.shape))
    assert not {"aten::cat", "aten::clone", "aten::contiguous", "aten::_reshape_copy"} & set(ops.names)
    assert ops.moved == 3 * 48 * (4 if inverse else 5)


def test_channels_last_is_kept():
    flow = FlowSequential([Squeeze(), *(layer for _ in range(2)
                           for layer in (ActNorm(8), _mix(8), AffineCoupling(_conditioner)))], (2, 8, 12))
    x = torch.randn(3, 2, 8, 12)
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        z, log_det = flow(last)
        expected = flow(x)
    assert z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(z, expected[0])
    torch.testing.assert_close(log_det, expected[1])


def test_hooks_are_called():
    flow, x = scatter(FlowSequential(glow(6, 1), (6,))), torch.randn(4, 6)
    expected, seen = flow(x)[0], []
    for layer in flow.layers:
        layer.register_forward_hook(lambda module, *_: seen.append(type(module)))
    torch.testing.assert_close(flow(x)[0], expected)
    assert seen == [ActNorm, ChannelMix, AffineCoupling]


def test_a_subclass_and_a_replaced_forward_are_obeyed():
    class Doubled(ActNorm):
        def forward(self, x, context=None, log_det=None):
            return 2 * x, log_det

    x = torch.randn(4, 6)
    flow = FlowSequential([Doubled(6), ActNorm(6)], (6,))
    assert torch.equal(flow(x)[0], 2 * x)
    flow = FlowSequential([ActNorm(6), ActNorm(6)], (6,))
    flow.layers[1].forward = lambda x, context=None, log_det=None: (3 * x, log_det)
    assert torch.equal(flow(x)[0], 3 * x)


def test_data_far_from_the_origin_keep_their_digits():
    flow, x = FlowSequential([ActNorm(6), _mix(6), _coupling(6)], (6,)), 1e4 + torch.randn(64, 6)
    flow.initialize(x)
    eager, truth = layer_by_layer(flow, x), layer_by_layer(copy.deepcopy(flow).double(), x.double())
    for ours, theirs, exact in zip(flow(x), eager, truth, strict=True):
        assert_three_way(ours, theirs, exact)


def test_compiles_into_one_graph():
    torch.compiler.reset()
    flow, x = scatter(FLOWS["two scales"]().float()), torch.rand(3, 4, 4, 4)
    compiled = torch.compile(flow, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(x), flow(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    loss = [sum(each.sum() for each in function(x)) for function in (compiled, flow)]
    for ours, theirs in zip(*(torch.autograd.grad(each, list(flow.parameters())) for each in loss), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_autocast_leaves_the_state_alone():
    flow, x = scatter(FlowSequential(glow(6, 2), (6,))), torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(x)
    assert (z.dtype, log_det.dtype) == (torch.float32, torch.float32)
    assert torch.allclose(z, flow(x)[0], atol=0.05)


def test_torch_func():
    flow, x = scatter(FlowSequential(glow(4, 1), (4,)).double()), torch.randn(3, 4, dtype=torch.float64)
    per_sample = torch.vmap(torch.func.grad(lambda row: flow(row[None])[1].sum()))(x)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(flow(x)[1].sum(), x)
    torch.testing.assert_close(per_sample, expected)
