"""Conditioner networks: the formula spelled out, the calm start, context, dropout."""

import pytest
import torch
import torch.nn.functional as F
from bijections import scatter

from fastflow.nn import ConvResidualNet, ResidualMLP, WeightNormResNet


def _spelled_out(net, x, layer):
    h = layer(net.input, x)
    for block in net.blocks:
        h = h + layer(block.second, F.relu(layer(block.first, F.relu(h))))
    shape = (1, -1, *[1] * (h.dim() - 2))
    h = (h - net.norm.shift.view(shape)) * net.norm.log_scale.exp().view(shape)
    return layer(net.output, F.relu(h))


def _reflecting(conv, x):
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), conv.weight, conv.bias)


def test_conv_residual_net_is_its_formula():
    net, x = scatter(ConvResidualNet(3, 4, hidden=8, blocks=2).double()), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    assert torch.allclose(net(x), _spelled_out(net, x, _reflecting))


def test_residual_mlp_is_its_formula():
    net, x = scatter(ResidualMLP(3, 4, hidden=8, blocks=2).double()), torch.randn(2, 3, dtype=torch.float64)
    assert torch.allclose(net(x), _spelled_out(net, x, lambda layer, h: F.linear(h, layer.weight, layer.bias)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("doubled", [False, True])
def test_weight_norm_res_net_is_its_formula(doubled, training):
    net = scatter(WeightNormResNet(3, 4, hidden=5, blocks=2, doubled=doubled).double(), 0.2).train(training)
    x = torch.randn(6, 3, 5, 4, dtype=torch.float64)

    def norm(layer, h):
        mean, var = layer.running_mean, layer.running_var
        if training:
            mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0)
        scale = layer.weight / (var + layer.eps).sqrt()
        return (h - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    def conv(layer, h):
        gain, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
        length = direction.square().sum((1, 2, 3), keepdim=True).sqrt()
        return F.conv2d(h, gain * direction / length, layer.bias, padding=direction.shape[-1] // 2)

    v = norm(net.in_norm, x) * (2 if doubled else 1)
    h = conv(net.input, F.relu(torch.cat([v, -v], 1)))
    total = conv(net.skips[0], h)
    for block, skip in zip(net.blocks, net.skips[1:], strict=True):
        inner = conv(block.first, F.relu(norm(block.first_norm, h)))
        h = h + conv(block.second, F.relu(norm(block.second_norm, inner)))
        total = total + conv(skip, h)
    expected = conv(net.output, F.relu(norm(net.out_norm, total)))
    assert torch.allclose(net(x), expected)


@pytest.mark.parametrize(("kind", "spatial"), [(ConvResidualNet, (2, 2)), (ResidualMLP, ())])
def test_starts_at_zero(kind, spatial):
    assert torch.equal(kind(3, 4, 8, 1)(torch.randn(2, 3, *spatial)), torch.zeros(2, 4, *spatial))


def test_context_joins_every_pixel():
    net = scatter(ConvResidualNet(3, 4, 8, 1, context_features=2))
    x, context = torch.randn(2, 3, 4, 4), torch.randn(2, 2)
    wide = ConvResidualNet(5, 4, 8, 1)
    wide.load_state_dict(net.state_dict())
    assert torch.equal(net(x, context), wide(torch.cat([x, context[..., None, None].expand(2, 2, 4, 4)], 1)))
    mlp = scatter(ResidualMLP(3, 4, 8, 1, context_features=2))
    flat = ResidualMLP(5, 4, 8, 1)
    flat.load_state_dict(mlp.state_dict())
    assert torch.equal(mlp(x[:, :, 0, 0], context), flat(torch.cat([x[:, :, 0, 0], context], 1)))


@pytest.mark.parametrize(("kind", "spatial"), [(ConvResidualNet, (4, 4)), (ResidualMLP, ())])
def test_dropout_only_in_training(kind, spatial):
    net, x = scatter(kind(3, 4, 8, 1, dropout=0.5), 1.0), torch.randn(2, 3, *spatial)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_refuses_what_it_cannot_reflect():
    with pytest.raises(ValueError, match=r"ConvResidualNet: x has shape \(2, 3, 4, 1\), expected at least 2 x 2"):
        ConvResidualNet(3, 4, 8, 1)(torch.randn(2, 3, 4, 1))


@pytest.mark.parametrize(("kind", "spatial"), [(ConvResidualNet, (4, 4)), (ResidualMLP, ())])
def test_refuses_another_context(kind, spatial):
    x, context = torch.randn(2, 3, *spatial), torch.randn(2, 2)
    with pytest.raises(ValueError, match=f"{kind.__name__}: context has 2 features, expected context_features = 0"):
        kind(3, 4, 8, 1)(x, context)
    with pytest.raises(ValueError, match=f"{kind.__name__}: context has 0 features, expected context_features = 5"):
        kind(3, 4, 8, 1, context_features=5)(x)


@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows):
    assert ConvResidualNet(3, 4, 8, 1)(torch.randn(rows, 3, 4, 4)).shape == (rows, 4, 4, 4)
    assert ResidualMLP(3, 4, 8, 1)(torch.randn(rows, 3)).shape == (rows, 4)
