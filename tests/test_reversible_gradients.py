"""Reversible training: its gradients are those of recorded training, with whatever else PyTorch does there."""

import copy
import warnings

import pytest
import torch
from bijections import scatter
from oracles import assert_three_way
from reversible_cases import gradients, pair, tabular
from torch import nn

from fastflow.models import SCNF
from fastflow.nn import (
    ActNorm,
    AffineCoupling,
    ChannelMix,
    ConvResidualNet,
    FactorOut,
    FlowSequential,
    ResidualMLP,
    Split,
    Squeeze,
)
from fastflow.ops import ScaleMap


def image(**options):
    """Two scales, mask and channel splits, a shared conditioner."""
    torch.manual_seed(0)
    shared = ConvResidualNet(4, 8, hidden=6, blocks=1, dropout=0.2)
    layers = [AffineCoupling(ConvResidualNet(1, 2, hidden=6, blocks=1), Split.checkerboard((1, 8, 8), 1)), Squeeze(),
              ActNorm(4), ChannelMix(4), AffineCoupling(ConvResidualNet(2, 4, hidden=6, blocks=1), Split.halves()),
              FactorOut(), Squeeze()]  # fmt: skip
    for side in ("first", "second", "first"):
        layers += [ActNorm(8), AffineCoupling(shared, Split.halves(side))]
    flow = scatter(FlowSequential(layers, (1, 8, 8), **options), 0.05)
    for module in flow.modules():
        if isinstance(module, ActNorm):
            module.initialized.fill_(True)
    return flow


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = ResidualMLP(4, 8, hidden=16, blocks=1, context_features=3)

    def forward(self, passive, context):
        return self.net(passive, context)


def conditional(**options):
    torch.manual_seed(0)
    return scatter(FlowSequential([AffineCoupling(Conditional(), Split.halves(side)) for side in ("first", "second")],
                                  (8,), **options))  # fmt: skip


FLOWS = {
    "halves": (tabular, (7, 8)),
    "interleaved": (lambda **o: tabular(split=Split.interleaved, **o), (7, 8)),
    "additive": (lambda **o: tabular(scale_map=ScaleMap("additive"), **o), (7, 8)),
    "gain": (lambda **o: tabular(scale_map=ScaleMap("tanh", gain=torch.ones(4)), **o), (7, 8)),
    "dropout": (lambda **o: tabular(dropout=0.3, **o), (7, 8)),
    "image": (image, (3, 1, 8, 8)),
}


@pytest.mark.parametrize("keep_every", [1, 4, 16])
@pytest.mark.parametrize("name", FLOWS)
def test_gradients_are_those_of_recorded_training(name, keep_every):
    build, shape = FLOWS[name]
    x = torch.rand(shape)
    recorded, reversible = pair(build, keep_every=keep_every)
    truth = gradients(copy.deepcopy(recorded).double(), x.double()) if "dropout" not in name else None
    expected = gradients(recorded, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gradients(reversible, x)
    for key, grad in found.items():
        if truth is None or name == "image":  # float64 draws other masks
            torch.testing.assert_close(grad, expected[key], rtol=2e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
        else:
            assert_three_way(grad, expected[key], truth[key], name=key)


def test_context_gets_its_gradient():
    recorded, reversible = pair(conditional, torch.float64)
    x, context = torch.randn(5, 8).double(), torch.randn(5, 3).double()
    expected = gradients(recorded, x, context)
    for key, grad in gradients(reversible, x, context).items():
        torch.testing.assert_close(grad, expected[key])


def test_the_random_state_goes_on_as_without_reversible():
    recorded, reversible = pair(FLOWS["dropout"][0])
    after = []
    for flow in (recorded, reversible):
        gradients(flow, torch.ones(4, 8))
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_batch_statistics_are_updated_once():
    recorded, reversible = pair(lambda **o: tabular(norm=True, **o))
    for flow in (recorded, reversible, tabular(norm=True, checkpoint="conditioner")):
        flow.load_state_dict(tabular(norm=True).state_dict())
        gradients(flow, torch.linspace(-1, 1, 40).view(5, 8))
        for name, value in flow.named_buffers():
            torch.testing.assert_close(value, dict(recorded.named_buffers())[name], msg=lambda m, n=name: f"{n}: {m}")


def test_backward_twice_and_into_grad():
    recorded, reversible = pair(tabular)
    x = torch.randn(6, 8)
    for flow in (recorded, reversible):
        z, log_det = flow(x)
        loss = z.square().mean() - log_det.mean()
        loss.backward(retain_graph=True)
        loss.backward()
    for ours, theirs in zip(reversible.parameters(), recorded.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_autocast_reaches_the_recomputed_conditioners():
    recorded, reversible = pair(tabular)
    x = torch.randn(64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(recorded, x)
        z, log_det = reversible(x)
        assert z.dtype == log_det.dtype == torch.float32
        found = gradients(reversible, x)
    outside = gradients(recorded, x)
    for key, grad in found.items():
        noise = (outside[key] - expected[key]).norm()
        assert (grad - expected[key]).norm() <= 0.1 * noise + 1e-6, key


def test_autocast_does_not_reach_the_gradients_of_the_float32_state():
    """70 channels are mixed by matrix products, which autocast would round in backward."""
    flow = FlowSequential([ChannelMix(70, weight=torch.randn(70, 70))], (70,), reversible=True)
    x = torch.randn(16, 70)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(x)
    found, = torch.autograd.grad([z, log_det], list(flow.parameters()), [torch.ones_like(z), torch.ones_like(log_det)])
    with torch.no_grad():
        exact = torch.ones(70, 16) @ x + 16 * torch.linalg.inv(flow.layers[0].weight.double()).T.float()
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)


def test_compiled_conditioners():
    recorded, reversible = pair(tabular)
    for layer in reversible.layers:
        layer.conditioner = torch.compile(layer.conditioner, backend="aot_eager")
    x = torch.randn(6, 8)
    expected = list(gradients(recorded, x).values())
    for grad, theirs in zip(gradients(reversible, x).values(), expected, strict=True):
        torch.testing.assert_close(grad, theirs, rtol=1e-4, atol=1e-5)


def _train_distributed(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    recorded, reversible = pair(tabular)
    x = torch.linspace(-1, 1, 64).view(8, 8)[4 * rank : 4 * rank + 4]
    for flow in (recorded, reversible):
        z, log_det = nn.parallel.DistributedDataParallel(flow)(x)
        (z.square().mean() - log_det.mean()).backward()
    for ours, theirs in zip(reversible.parameters(), recorded.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    torch.distributed.destroy_process_group()


def test_two_ranks_average_their_gradients(tmp_path):
    torch.multiprocessing.spawn(_train_distributed, (str(tmp_path),), nprocs=2)


def test_frozen_parameters_and_data_without_gradient():
    recorded, reversible = pair(tabular)
    for flow in (recorded, reversible):
        flow.layers[2].requires_grad_(False)
        z, log_det = flow(torch.ones(3, 8))
        (z.sum() - log_det.sum()).backward()
    assert all(each.grad is None for each in reversible.layers[2].parameters())
    for ours, theirs in zip(reversible.layers[0].parameters(), recorded.layers[0].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_nothing_is_recorded_where_nothing_is_differentiated():
    flow = tabular(reversible=True)
    with torch.no_grad():
        assert flow(torch.ones(2, 8))[0].grad_fn is None
    assert flow.requires_grad_(False)(torch.ones(2, 8))[0].grad_fn is None
    assert flow(torch.ones(0, 8, requires_grad=True))[0].sum().backward() is None


def test_torch_func_takes_the_recorded_way():
    recorded, reversible = pair(tabular, torch.float64)
    x = torch.randn(3, 8).double()
    expected = torch.func.grad(lambda x: recorded(x)[0].square().sum())(x)
    torch.testing.assert_close(torch.func.grad(lambda x: reversible(x)[0].square().sum())(x), expected)


def test_trunks_of_the_models_train_reversibly():
    losses, images = [], torch.randint(0, 17, (20, 1, 8, 8))
    for reversible in (False, True):
        torch.manual_seed(0)
        model = SCNF.digits(reversible=reversible)
        model.initialize(images)
        log_base, scores = model.class_scores(images)
        loss = -(log_base + scores.logsumexp(1)).mean()
        losses.append(torch.autograd.grad(loss, list(model.trunk.parameters())))
    for ours, theirs in zip(*losses, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-4)
