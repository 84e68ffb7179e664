"""Reversible training: the gradients of recorded training, memory that does not grow with depth, and its guards."""

import copy
import re
import warnings

import pytest
import torch
from bijections import scatter
from oracles import assert_three_way
from torch import nn

from fastflow.bench.timing import peak_memory
from fastflow.models import SCNF
from fastflow.nn import (
    ActNorm,
    AffineCoupling,
    Bijection,
    ChannelMix,
    ConvResidualNet,
    FactorOut,
    FlowSequential,
    ResidualMLP,
    Split,
    Squeeze,
)
from fastflow.ops import ScaleMap


def perceptron(features, made, width=32, dropout=0.0, norm=False):
    layers = [nn.Linear(features, width), nn.BatchNorm1d(width) if norm else nn.Identity(), nn.ReLU(),
              nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, made)]  # fmt: skip
    return nn.Sequential(*layers)


def tabular(steps=6, features=8, split=Split.halves, width=32, dropout=0.0, norm=False, scale_map=None, **options):
    torch.manual_seed(0)
    sides = ("odd", "even") if split == Split.interleaved else ("second", "first")
    settings = {} if scale_map is None else {"scale_map": scale_map}
    made = features // 2 if scale_map == ScaleMap("additive") else features
    layers = [AffineCoupling(perceptron(features // 2, made, width, dropout, norm), split(sides[i % 2]), **settings)
              for i in range(steps)]
    return FlowSequential(layers, (features,), **options)


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


def pair(build, dtype=torch.float32, **options):
    """The same flow, recorded and reversible."""
    recorded, reversible = build(), build(reversible=True, **options)
    reversible.load_state_dict(recorded.state_dict())
    return recorded.to(dtype), reversible.to(dtype)


def gradients(flow, x, context=None):
    """Of x, context, the running log_det and every parameter; the same noise each time."""
    x = x.detach().clone().requires_grad_()
    context = None if context is None else context.detach().clone().requires_grad_()
    running = torch.zeros(len(x), dtype=x.dtype).requires_grad_()
    torch.manual_seed(1)
    z, log_det = flow(x, context, running)
    loss = (z * z.sin()).mean() - (log_det * torch.arange(1.0, len(x) + 1).to(x)).mean()
    named = {"x": x, "running": running} | ({} if context is None else {"context": context})
    named |= dict(flow.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


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


class Forgetful(Bijection):
    """Loses most bits of its input: z = 1e-6 x + 1, in float32."""

    def forward(self, x, context=None, log_det=None):
        return 1e-6 * x + 1, x.new_zeros(len(x)) + (0 if log_det is None else log_det)

    def inverse(self, z, context=None, log_det=None):
        return (z - 1) * 1e6, z.new_zeros(len(z)) + (0 if log_det is None else log_det)


def test_drift_is_seen_named_once_and_corrected():
    def build(**options):
        flow = tabular(steps=4)
        return FlowSequential([*flow.layers[:2], Forgetful(), *flow.layers[2:]], (8,), **options)

    recorded, reversible = pair(build, keep_every=3)
    x = torch.randn(6, 8)
    expected = gradients(recorded, x)
    with pytest.warns(UserWarning, match=r"layers 0 to 2 .* least exact by itself .* layer 2 \(Forgetful\)"):
        found = gradients(reversible, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = gradients(reversible, x)
    for key, grad in expected.items():
        torch.testing.assert_close(found[key], grad, rtol=1e-5, atol=1e-6)
        assert torch.equal(found[key], again[key])


def test_drift_that_is_not_finite_is_seen():
    flow = tabular(steps=2, scale_map=ScaleMap("exp"), reversible=True)
    with torch.no_grad():
        flow.layers[0].conditioner[-1].bias.fill_(-200.0)
    with pytest.warns(UserWarning, match="layer 0"):
        gradients(flow, torch.randn(3, 8))


def test_memory_does_not_grow_with_depth():
    """Beyond the kept states and the gradients themselves."""
    features, rows, keep_every = 64, 1024, 8

    def live(steps):
        flow = tabular(steps, features, width=128, reversible=True, keep_every=keep_every)
        parameters, x = list(flow.parameters()), torch.randn(rows, features)

        def step():
            z, log_det = flow(x)
            return torch.autograd.grad(z.square().mean() - log_det.mean(), parameters)

        kept = (steps // keep_every) * 4 * rows * (features + 1)
        return peak_memory(step) - kept - sum(4 * each.numel() for each in parameters)

    assert live(64) <= 1.1 * live(8)


def test_checkpointed_conditioners_give_the_same_gradients_in_less_memory():
    features = 64
    plain, light = tabular(8, features, width=256), tabular(8, features, width=256, checkpoint="conditioner")
    x = torch.randn(512, features)
    expected = gradients(plain, x)
    for key, grad in gradients(light, x).items():
        torch.testing.assert_close(grad, expected[key])
    peaks = [peak_memory(lambda flow=flow: gradients(flow, x)) for flow in (plain, light)]
    assert peaks[1] < 0.5 * peaks[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep_every": 0}, ValueError, "keep_every is 0, expected at least 1"),
        ({"checkpoint": "all"}, ValueError, "checkpoint is 'all', expected None or 'conditioner'"),
        ({"reversible": True, "checkpoint": "conditioner"}, ValueError, "reversible and checkpoint are both given"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match="^FlowSequential: " + re.escape(message)):
        tabular(**options)


def test_bad_use():
    with pytest.raises(TypeError, match="reversible needs conditioners that are modules, got function"):
        FlowSequential([AffineCoupling(lambda passive: passive.repeat(1, 2))], (8,), reversible=True)
    with pytest.raises(TypeError, match=r"x has dtype torch\.bfloat16, expected float32"):
        tabular(reversible=True)(torch.ones(2, 8, dtype=torch.bfloat16))
    x = torch.randn(2, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(tabular(reversible=True)(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
