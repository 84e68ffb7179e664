"""Models and containers of normflows, fused, against the originals."""

import copy

import pytest
import torch
from agreement import assert_agrees, assert_keeps, leaves, outputs_and_gradients, perturbed
from bijection_checks import BOTH, assert_compiles, assert_same_draws, assert_transforms, inverse, log_prob
from peers import normflows
from torch import nn

from fastflow.fusion import fuse
from fastflow.fusion.swap import survey

flows, distributions = normflows.flows, normflows.distributions
IMAGE = (2, 8, 8)


def net(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def layers():
    made = [layer for _ in range(2) for layer in (flows.AffineCouplingBlock(net(3, 6)), flows.Permute(6, mode="swap"),
                                                  flows.ActNorm((6,)), flows.LULinearPermute(6))]
    return started(made, torch.randn(16, 6))


def started(made, x):
    with torch.no_grad():
        for layer in reversed(made):
            x = layer.inverse(x)[0]
    return made


def flow():
    return perturbed(normflows.NormalizingFlow(distributions.DiagGaussian(6), layers()))


def class_flow():
    return perturbed(normflows.ClassCondFlow(distributions.ClassCondDiagGaussian(6, 3), layers()))


class Conditional(nn.Module):
    """A layer and a base that take a context."""

    def __init__(self):
        super().__init__()
        self.net = net(3, 6)

    def forward(self, z, context):
        shift = self.net(context)
        return z + shift, shift.sum(1)

    def inverse(self, z, context):
        shift = self.net(context)
        return z - shift, -shift.sum(1)


def conditional_flow():
    base = distributions.base.ConditionalDiagGaussian(6, net(3, 12))
    made = [Conditional(), flows.LULinearPermute(6), Conditional()]
    return perturbed(normflows.ConditionalNormalizingFlow(base, made))


def multiscale(class_cond=False, transform=None):
    levels = [[flows.GlowBlock(16, 4, init_zeros=False), flows.Squeeze()],
              [flows.GlowBlock(8, 4, init_zeros=False, split_mode="channel_inv"), flows.Squeeze()]]
    shapes = [(16, 2, 2), (4, 4, 4)]
    bases = [distributions.GlowBase(shape, num_classes=3 if class_cond else None) for shape in shapes]
    model = normflows.MultiscaleFlow(bases, levels, [flows.Merge()], transform, class_cond)
    with torch.no_grad():
        model.inverse_and_log_det(0.5 + 0.1 * torch.rand(16, *IMAGE))
    return perturbed(model)


def assert_like(original, call, *inputs):
    """Outputs agree by the three-way rule; gradients, sums over rows that many layers have rounded, are close."""
    assert_agrees(original, lambda *given: [each.detach() for each in leaves(call(*given))], *inputs)
    grads = [outputs_and_gradients(module, call, inputs)[1] for module in (fuse(copy.deepcopy(original)), original)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 17])
def test_flow_agrees(rows):
    assert_like(flow(), log_prob, torch.randn(rows, 6))
    assert_like(class_flow(), log_prob, torch.randn(rows, 6), torch.randint(3, (rows,)))
    assert_like(conditional_flow(), log_prob, torch.randn(rows, 6), torch.randn(rows, 3))


def test_no_rows():
    assert fuse(flow()).log_prob(torch.randn(0, 6)).shape == (0,)
    assert fuse(multiscale()).log_prob(torch.rand(0, *IMAGE), None).shape == (0,)


@pytest.mark.parametrize(("class_cond", "transform"), [(False, None), (True, None), (False, "shift"), (False, "logit")])
def test_multiscale_flow_agrees(class_cond, transform):
    transforms = {None: lambda: None, "shift": normflows.transforms.Shift, "logit": normflows.transforms.Logit}
    model = multiscale(class_cond, transforms[transform]())
    x = 0.5 + 0.1 * torch.rand(5, *IMAGE)
    y = (torch.arange(5) % 3,) if class_cond else ()
    assert_like(model, lambda m, x, *y: m.log_prob(x.clone(), *(y or (None,))), x, *y)
    assert_like(model, lambda m, x: m.inverse_and_log_det(x.clone()), x)
    latent = torch.randn(5, 16, 2, 2), torch.randn(5, 4, 4, 4)
    assert_like(model, lambda m, *z: m.forward_and_log_det(list(z)), *latent)


def test_sums_of_a_float64_model_are_float64():
    for make, given in ((flow, ()), (conditional_flow, (torch.randn(7, 3).double(),))):
        model = make().double()
        fused, x = fuse(copy.deepcopy(model)), torch.randn(7, 6, dtype=torch.float64)
        exact = model.log_prob(x, *given)
        for mine, theirs in ((fused.inverse_and_log_det(x, *given), model.inverse_and_log_det(x, *given)),
                             (fused.forward_and_log_det(x, *given), model.forward_and_log_det(x, *given))):
            assert torch.equal(mine[0], theirs[0]) or torch.allclose(mine[0], theirs[0], rtol=1e-12)
            assert mine[1].dtype == torch.float64
            assert theirs[1].dtype == torch.float32
            torch.testing.assert_close(mine[1].float(), theirs[1])
        torch.testing.assert_close(fused.log_prob(x, *given), exact)
        torch.testing.assert_close(fused.forward_kld(x, *given), -exact.mean(), rtol=1e-12, atol=1e-12)


def test_losses_agree():
    original = flow()
    fused, x = fuse(copy.deepcopy(original)), torch.randn(7, 6)
    torch.testing.assert_close(fused.forward_kld(x), original.forward_kld(x))
    original.p = fused.p = _Target()
    assert_same_draws(fused, original, lambda m: m.reverse_kld(9))
    assert_same_draws(fused, original, lambda m: m.reverse_kld(9, score_fn=False))
    assert_same_draws(fused, original, lambda m: m.reverse_alpha_div(9, alpha=2))


class _Target(nn.Module):
    def log_prob(self, z):
        return -0.5 * z.square().sum(1)


def test_samples_are_those_of_the_seed():
    for original, options in ((flow(), {}), (class_flow(), {"y": torch.tensor([2, 0, 1])}),
                              (multiscale(), {"temperature": 0.7}),
                              (multiscale(transform=normflows.transforms.Shift()), {})):
        assert_same_draws(fuse(copy.deepcopy(original)), original, lambda m, options=options: m.sample(3, **options))


def test_samples_are_differentiable_through_a_shift():
    model = fuse(multiscale(transform=normflows.transforms.Shift()))
    x, log_q = model.sample(3)
    (x.sum() + log_q.sum()).backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())


def test_a_shift_leaves_its_input():
    x = torch.rand(3, *IMAGE)
    before = x.clone()
    fuse(normflows.transforms.Shift()).inverse(x)
    assert torch.equal(x, before)
    assert_agrees(normflows.transforms.Shift(0.25), lambda m, x: m.inverse(x.clone()), x)


@pytest.mark.parametrize("mode", ["channel", "checkerboard"])
@pytest.mark.parametrize("call", BOTH)
def test_glow_block(call, mode):
    block = flows.GlowBlock(4, 8, split_mode=mode, init_zeros=False, use_lu=mode == "channel", net_actnorm=True)
    x = torch.randn(5, 4, 4, 4)
    with torch.no_grad():
        block.inverse(x)
    perturbed(block)
    fused = assert_agrees(block, call, x)
    assert not [each for each in survey(fused) if each.reason]
    assert_transforms(block, call, x)
    assert_compiles(block, call, x)


@pytest.mark.parametrize("make", [flow, multiscale])
def test_models_vectorise_and_compile(make):
    original = make()
    x = torch.randn(5, 6) if make is flow else torch.rand(5, *IMAGE)
    fused = fuse(copy.deepcopy(original))
    rest = () if make is flow else (None,)
    mapped = torch.func.vmap(lambda row: fused.log_prob(row[None], *rest)[0])(x)
    torch.testing.assert_close(mapped, original.log_prob(x, *rest))
    assert_compiles(original, lambda m, x: m.log_prob(x, *rest), x, fewer_rows=make is flow)


def test_an_exported_flow_takes_any_number_of_rows():
    class Density(nn.Module):
        def __init__(self, flow):
            super().__init__()
            self.flow = flow

        def forward(self, x):
            return self.flow.log_prob(x)

    made = [each for each in layers() if not isinstance(each, flows.LULinearPermute)]
    original = normflows.NormalizingFlow(distributions.DiagGaussian(6), made)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Density(fuse(copy.deepcopy(original))), (torch.randn(4, 6),),
                                  dynamic_shapes={"x": {0: rows}})
    x = torch.randn(9, 6)
    torch.testing.assert_close(program.module()(x), original.log_prob(x))


@pytest.mark.parametrize("make", [flow, class_flow, conditional_flow, multiscale])
def test_keeps(make):
    inputs = {flow: (torch.randn(5, 6),), class_flow: (torch.randn(5, 6), torch.randint(3, (5,))),
              conditional_flow: (torch.randn(5, 6), torch.randn(5, 3)), multiscale: (torch.rand(5, *IMAGE),)}[make]
    assert_keeps(make(), log_prob if make is not multiscale else inverse_of_multiscale, *inputs)


def inverse_of_multiscale(module, x):
    return module.inverse_and_log_det(x)


def test_a_log_det_of_another_shape_is_an_error():
    class Wide(nn.Module):
        def inverse(self, z):
            return z, torch.zeros(5, 5)

    for module in (normflows.NormalizingFlow(distributions.DiagGaussian(6), [Wide()]),):
        for each in (module, fuse(copy.deepcopy(module))):
            with pytest.raises(RuntimeError, match=r"shape"):
                each.log_prob(torch.randn(5, 6))


def test_the_inverse_of_a_block_undoes_it():
    block = flows.GlowBlock(4, 8, init_zeros=False)
    fused, x = fuse(block), torch.randn(5, 4, 4, 4)
    z, log_det = inverse(fused, x)
    back, log_det_back = fused(z)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-4, atol=1e-4)
