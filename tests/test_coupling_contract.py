"""AffineCoupling as PyTorch sees it: copies, memory formats, autocast, torch.compile, torch.func, DDP."""

import copy
import io
import pickle

import pytest
import torch
from coupling_cases import eager, every_split, make_coupling
from oracles import assert_three_way
from torch import nn

from fastflow.nn import Split
from fastflow.ops import ScaleMap


@pytest.mark.parametrize("split", every_split((3, 4, 4)), ids=repr)
def test_copies_compute_the_same(split):
    shape = (3, 4, 4)
    coupling = make_coupling(split, shape, ScaleMap("tanh", gain=torch.rand(split.active_channels(3))))
    x = torch.randn(2, *shape)
    saved = io.BytesIO()
    torch.save(coupling, saved)
    saved.seek(0)
    for same in (copy.deepcopy(coupling), pickle.loads(pickle.dumps(coupling)), torch.load(saved, weights_only=False)):
        assert same.gain is not coupling.gain
        for ours, theirs in zip(same(x), coupling(x), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("split", every_split((4, 5, 6)), ids=repr)
def test_channels_last_stays_channels_last(split):
    coupling = make_coupling(split, (4, 5, 6)).to(memory_format=torch.channels_last)
    x = torch.randn(3, 4, 5, 6)
    z, _ = coupling(x.to(memory_format=torch.channels_last))
    assert z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(z, coupling(x)[0])
    assert split.passive_part(x.to(memory_format=torch.channels_last)).stride(3) > 1


@pytest.mark.parametrize("split", [Split.halves(), Split.interleaved("even"), Split.checkerboard((6,))], ids=repr)
def test_autocast_runs_the_conditioner_in_bfloat16_and_the_coupling_in_float32(split):
    """z and log_det are what float64 arithmetic makes of the bfloat16 parameters, to float32 rounding."""
    coupling = make_coupling(split, (6,))
    made = []
    coupling.conditioner.register_forward_hook(lambda module, inputs, output: made.append(output))
    x = torch.randn(512, 6)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = coupling(x)
        back, _ = coupling.inverse(z)
    assert made[0].dtype == torch.bfloat16
    assert (z.dtype, log_det.dtype) == (torch.float32, torch.float32)

    def formulas(dtype):
        scale, shift = made[0].to(dtype).chunk(2, dim=1)
        return eager(x.to(dtype), scale, shift, scale_map=coupling.scale_map, mask=coupling.mask,
                     active=split.active_slice(6))  # fmt: skip

    for ours, single, truth in zip((z, log_det), formulas(torch.float32), formulas(torch.float64), strict=True):
        assert_three_way(ours, single, truth)
    torch.testing.assert_close(back, x)


def test_half_precision_model():
    for dtype in (torch.bfloat16, torch.float16):
        coupling = make_coupling(Split.checkerboard((2, 4, 4)), (2, 4, 4)).to(dtype)
        x = torch.randn(3, 2, 4, 4, dtype=dtype, requires_grad=True)
        z, log_det = coupling(x)
        (z.float().square().sum() + log_det.sum()).backward()
        assert (z.dtype, log_det.dtype, x.grad.dtype) == (dtype, torch.float32, dtype)
        assert coupling.mask.dtype == torch.bool


@pytest.mark.parametrize("split", [Split.halves(), Split.checkerboard((4, 3, 3))], ids=repr)
def test_compiles_into_one_graph(split):
    torch.compiler.reset()
    gain = torch.rand(split.active_channels(4))
    coupling = make_coupling(split, (4, 3, 3), ScaleMap("tanh", gain=gain), packing="shift_scale_interleaved")
    x = torch.randn(5, 4, 3, 3)

    def loss(module):
        z, log_det = module(x)
        return z.square().sum() + log_det.sum()

    expected = torch.autograd.grad(loss(coupling), list(coupling.parameters()))
    compiled = torch.compile(coupling, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(loss(compiled), list(coupling.parameters())), expected)
    inverse = torch.compile(coupling.inverse, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(inverse(coupling(x)[0].detach())[0], x)


def test_per_sample_gradients():
    coupling = make_coupling(Split.halves(), (4,), ScaleMap("tanh", gain=torch.rand(2)))
    parameters = {name: parameter.detach() for name, parameter in coupling.named_parameters()}
    x = torch.randn(3, 4)

    def loss(parameters, row):
        z, log_det = torch.func.functional_call(coupling, parameters, (row[None],))
        return z.square().sum() - log_det.sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index, row in enumerate(x):
        coupling.zero_grad()
        loss(dict(coupling.named_parameters()), row).backward()
        for name, parameter in coupling.named_parameters():
            torch.testing.assert_close(each[name][index], parameter.grad)


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        coupling = make_coupling(Split.checkerboard((2, 4, 4)), (2, 4, 4), ScaleMap("tanh", gain=torch.ones(2)))
        parallel = nn.parallel.DistributedDataParallel(coupling)
        z, log_det = parallel(torch.randn(3, 2, 4, 4))
        (z.square().sum() + log_det.sum()).backward()
        assert all(parameter.grad is not None for parameter in coupling.parameters())
    finally:
        torch.distributed.destroy_process_group()
