"""Fused FrEIA layers: what they refuse, when ActNorm starts, what their originals break, and FrEIA's containers."""

import copy

import pytest
import torch
from agreement import leaves, outputs_and_gradients, perturbed
from freia_cases import CASES, M, call, subnet
from peers import FrEIA
from torch import nn

from fastflow.fusion import fuse, unfuse
from fastflow.fusion.layer import is_fused
from fastflow.fusion.swap import survey

F = FrEIA.framework
NEWER = hasattr(M, "RationalQuadraticSpline")  # FrEIA's git tree, whose version is PyPI's


def block(**options) -> nn.Module:
    return M.AllInOneBlock([(6,)], **{"subnet_constructor": subnet(1), **options})


def changed(layer: nn.Module, name: str, value: object) -> nn.Module:
    """The layer with other data in its tensor of that name."""
    getattr(layer, name).data = value(getattr(layer, name).data)
    return layer


LEFT = {
    "its clamp_activation is a function of your own": lambda: M.GLOWCouplingBlock(
        [(6,)], subnet_constructor=subnet(1), clamp_activation=lambda u: torch.atan(u)),
    "its clamp is 0, expected a number > 0": lambda: M.RNVPCouplingBlock([(6,)], subnet_constructor=subnet(1), clamp=0),
    "one of its parts is empty": lambda: M.GINCouplingBlock([(6,)], subnet_constructor=lambda *_: nn.Identity(),
                                                            split_len=0),
    "its affine_clamping is -1, expected a number > 0": lambda: block(affine_clamping=-1),
    "its permutation is trained": lambda: trained_permutation(),
    "its perm_inv does not undo its perm": lambda: changed(M.PermuteRandom([(6,)]), "perm_inv", lambda p: p.roll(1)),
    "its vectors are a condition, for which the layer itself fails": lambda: M.HouseholderPerm(
        [(6,)], dims_c=[(6, 2)], n_reflections=2),
    "its downsample_kernel is not a permutation of the four pixels": lambda: changed(
        M.IRevNetDownsampling([(2, 4, 4)]), "downsample_kernel", torch.negative),
    "its haar_weights differ between the channels": lambda: changed(
        M.HaarUpsampling([(8, 4, 4)]), "haar_weights", lambda w: w * torch.arange(8).view(-1, 1, 1, 1)),
    "it is two additions and a concatenation, for which PyTorch's operations are as fast": lambda: M.NICECouplingBlock(
        [(6,)], subnet_constructor=subnet(1)),
    "fastflow has no kernel for it": lambda: M.LearnedElementwiseScaling([(6,)]),
}


def trained_permutation() -> nn.Module:
    layer = block(permute_soft=True)
    layer.w_perm.requires_grad_()
    return layer


@pytest.mark.parametrize("reason", LEFT)
def test_is_left_with_a_reason(reason):
    (found,) = [each for each in survey(fuse(LEFT[reason]())) if each.name == "the model itself"]
    assert found.reason == reason


@pytest.mark.parametrize("kind", ["GLOWCouplingBlock", "GINCouplingBlock", "AffineCouplingOneSided", "AllInOneBlock"])
def test_other_channels_than_the_layer_has_are_a_runtime_error(kind):
    layer = getattr(M, kind)([(6,)], subnet_constructor=subnet(1))
    for each in (layer, fuse(copy.deepcopy(layer))):
        with pytest.raises(RuntimeError):
            each([torch.randn(4, 7)])


@pytest.mark.parametrize("x", [torch.zeros(4, 6, dtype=torch.int64), torch.zeros(4, 6, 1)])
def test_what_a_block_cannot_take_is_a_runtime_error(x):
    for rev in (False, True):
        with pytest.raises(RuntimeError, match="expected floats of 2" if not NEWER or x.dim() == 2 else "shape"):
            fuse(block())([x], rev=rev)


def test_a_subnet_of_the_wrong_width_is_an_error():
    wide = fuse(block(subnet_constructor=lambda inputs, outputs: nn.Linear(inputs, outputs + 2)))
    with pytest.raises(ValueError, match=r"its subnet returns shape \(4, 8\), expected \(4, 6\)"):
        wide([torch.randn(4, 6)])


class TestActNorm:
    """Both releases; a fused layer starts as the original does, but not from a batch without a deviation."""

    @pytest.mark.parametrize("shape", [(6,), (6, 4, 4)])
    @pytest.mark.parametrize("rev", [False, True])
    def test_starts_from_the_first_batch_as_the_original(self, shape, rev):
        layer = M.ActNorm([shape])
        fused = fuse(copy.deepcopy(layer))
        x = 3 * torch.randn(20, *shape) + 2
        torch.testing.assert_close(fused([x], rev=rev), layer([x], rev=rev))
        assert fused.state_dict().keys() == layer.state_dict().keys()
        for mine, original in zip(fused.state_dict().values(), layer.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, original)
        torch.testing.assert_close(fused([2 * x], rev=rev), layer([2 * x], rev=rev))

    @pytest.mark.parametrize("rows", [0, 1])
    def test_a_batch_without_a_deviation_leaves_it_uninitialised(self, rows):
        layer = fuse(M.ActNorm([(6,)]))
        small, x = torch.randn(rows, 6), 3 * torch.randn(20, 6) + 2
        with pytest.warns(UserWarning, match="ActNorm: x has fewer than 2 values a channel, expected more"):
            (z,), log_det = layer([small])
        assert torch.equal(z, small)
        assert not log_det.any()
        (z,), _ = layer([x])
        torch.testing.assert_close(z.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.std(0), torch.ones(6))

    def test_one_image_is_enough(self):
        layer = fuse(M.ActNorm([(6, 4, 4)]))
        (z,), _ = layer([3 * torch.randn(1, 6, 4, 4) + 2])
        torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(6))

    def test_a_loaded_state_is_not_initialised_again(self):
        source, layer = M.ActNorm([(6,)]), fuse(M.ActNorm([(6,)]))
        source([3 * torch.randn(20, 6)])
        layer.load_state_dict(source.state_dict())
        x = torch.randn(5, 6)
        torch.testing.assert_close(layer([x]), source([x]))

    if NEWER:
        def test_initialising_by_hand_counts(self):
            layer = fuse(M.ActNorm([(6,)]))
            layer.initialize(3 * torch.randn(20, 6))
            before = copy.deepcopy(layer.state_dict())
            layer([torch.randn(20, 6)])
            torch.testing.assert_close(layer.state_dict(), before)


def test_a_subnet_that_ends_in_tanh_trains():
    layer = block(subnet_constructor=subnet(1, nn.Tanh))
    x = torch.randn(5, 6)
    for _ in range(2):  # the release on PyPI writes to what tanh keeps for its gradient
        (z,), log_det = fuse(layer)([x])
        (z.square().sum() - log_det.sum()).backward()
    assert all(each.grad.isfinite().all() for each in layer.subnet.parameters())
    if not NEWER:
        (z,), log_det = unfuse(layer)([x])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            (z.square().sum() - log_det.sum()).backward()


def test_a_condition_may_be_written_to():
    """It is a copy that the subnet gets then, so a first layer in place is as good as another."""
    layer = perturbed(block(dims_c=[(2,)], subnet_constructor=lambda inputs, outputs: nn.Sequential(
        nn.ReLU(inplace=True), nn.Linear(inputs, outputs))))
    x, c = torch.randn(5, 6), torch.randn(5, 2)
    with torch.no_grad():
        torch.testing.assert_close(fuse(copy.deepcopy(layer))([x], [c]), layer([x], [c]))


def test_hard_permutations_are_no_products():
    layer = fuse(block())
    assert not layer._fused_order.is_floating_point()
    assert fuse(block(permute_soft=True))._fused_order is None
    other = block()
    layer.load_state_dict(other.state_dict())
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer([x]), other([x]))


def test_blocks_with_reflections_are_copied_after_a_forward():
    layer = fuse(block(learned_householder_permutation=2, permute_soft=True))
    (z,), _ = layer([torch.randn(5, 6)])
    z.sum().backward()
    copy.deepcopy(layer)


def test_orthogonal_weights_are_corrected_as_before():
    layer = perturbed(M.OrthogonalTransform([(6,)], correction_interval=1))
    layer.weights.data += 0.1 * torch.randn(6, 6)
    fuse(layer)
    for _ in range(4):
        (z,), log_det = layer([torch.randn(5, 6)])
        (z.sum() + log_det.sum()).backward()
    torch.testing.assert_close(layer.weights @ layer.weights.t(), torch.eye(6), atol=1e-5, rtol=0)


def sequence() -> nn.Module:
    inn = F.SequenceINN(4, 4, 4)
    inn.append(M.ActNorm)
    inn.append(M.AllInOneBlock, cond=0, cond_shape=(2, 4, 4), subnet_constructor=subnet(3))
    inn.append(M.HaarDownsampling, order_by_wavelet=True)
    inn.append(M.GLOWCouplingBlock, cond=1, cond_shape=(3, 2, 2), subnet_constructor=subnet(3))
    inn.append(M.Fixed1x1Conv, M=torch.linalg.qr(torch.randn(16, 16))[0])
    inn.append(M.Flatten)
    inn.append(M.PermuteRandom)
    return inn


def graph() -> nn.Module:
    """Two scales: half of the channels leave after the first coupling."""
    image, below = F.ConditionNode(2, 4, 4), F.ConditionNode(3, 2, 2)
    nodes = [F.InputNode(4, 4, 4)]
    nodes.append(F.Node(nodes[-1], M.GINCouplingBlock, {"subnet_constructor": subnet(3)}, conditions=image))
    nodes.append(F.Node(nodes[-1], M.IRevNetDownsampling, {}))
    nodes.append(F.Node(nodes[-1], M.AllInOneBlock, {"subnet_constructor": subnet(3)}, conditions=[below]))
    halves = F.Node(nodes[-1], M.Split, {})
    nodes.append(halves)
    out = F.Node(halves.out1, M.Flatten, {})
    deeper = F.Node(halves.out0, M.AffineCouplingOneSided, {"subnet_constructor": subnet(3)}, conditions=below)
    flat = F.Node(deeper, M.Flatten, {})
    joined = F.Node([flat.out0, out.out0], M.Concat, {})
    turned = F.Node(joined, M.HouseholderPerm, {"n_reflections": 4})
    return F.GraphINN([*nodes, out, deeper, flat, joined, turned, F.OutputNode(turned), image, below])


@pytest.mark.parametrize("build", [sequence, graph])
@pytest.mark.parametrize("jac", [True, False])
def test_containers_with_conditions(build, jac):
    torch.manual_seed(0)
    model = build()
    given = torch.randn(7, 4, 4, 4), torch.randn(7, 2, 4, 4), torch.randn(7, 3, 2, 2)
    model(given[0], c=given[1:])
    perturbed(model)
    fused = fuse(copy.deepcopy(model))
    assert [each.kind for each in survey(fused) if each.reason] == (["Split", "Concat"] if build is graph else [])

    def forward(module, x, *conditions):
        return module(x, c=conditions, jac=jac)

    def backward(module, z, *conditions):
        return module(z.clone(), c=conditions, rev=True, jac=jac)

    torch.testing.assert_close(outputs_and_gradients(fused, forward, given),
                               outputs_and_gradients(model, forward, given))
    latents = (fused(given[0], c=given[1:])[0].detach(), *given[1:])
    torch.testing.assert_close(outputs_and_gradients(fused, backward, latents),
                               outputs_and_gradients(model, backward, latents))
    torch.testing.assert_close(backward(fused, *latents)[0], given[0], atol=1e-4, rtol=1e-4)
    empty = [each[:0] for each in given]
    assert fused(empty[0], c=empty[1:])[0].shape == (0, 64)


# OrthogonalTransform is none of them: a backward hook of that kind breaks every graph.
COMPILED = ("GLOWCouplingBlock-rank3-c", "GINCouplingBlock-rank1-c", "AllInOneBlock-rank3", "AllInOneBlock-soft",
            "AllInOneBlock-gin", "AllInOneBlock-householder-rank3", "ActNorm-rank3", "PermuteRandom-rank1",
            "HouseholderPerm-3", "HaarDownsampling-ordered", "IRevNetUpsampling-legacy")


@pytest.mark.parametrize("rev", [False, True], ids=["forward", "rev"])
@pytest.mark.parametrize("name", COMPILED)
def test_compiles_as_one_graph(name, rev):
    torch._dynamo.reset()
    case = CASES[name]()
    layer, inputs = fuse(case.layer), case.inputs(4, rev)

    def run(module, *given):
        return call(module, *given, rev=rev)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = [outputs_and_gradients(layer, each, inputs) for each in (compiled, run)]
    for one, other in zip(*map(leaves, results), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))


def test_every_case_is_fused():
    assert all(is_fused(fuse(make().layer)) for make in CASES.values())
