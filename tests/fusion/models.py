"""Small models of every peer library, as their users build them: what `fuse` has to serve as a whole."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from peers import FrEIA, nflows, normflows, zuko
from torch import Tensor, nn

D = 6
IMAGE = (4, 8, 8)
CONTEXT = 3


class Model(NamedTuple):
    """`left` are the classes of the layers that `fuse` leaves as they are; `shape` is that of one example.

    log_prob   (module, x, *context) -> [B]
    encode     (module, x, *context) -> (z, log_det)
    decode     (module, z, *context) -> (x, log_det), the inverse of `encode`
    sample     (module, count, *context) -> samples; None where the library has no base distribution
    """

    name: str
    make: Callable[[], nn.Module]
    log_prob: Callable
    encode: Callable
    decode: Callable
    sample: Callable | None
    shape: tuple[int, ...] = (D,)
    context: int = 0
    left: tuple[str, ...] = ()

    @property
    def library(self) -> str:
        return self.name.split()[0]

    def data(self, rows: int) -> tuple[Tensor, ...]:
        """x and, if the model is conditional, its context, float64."""
        generator = torch.Generator().manual_seed(rows)
        shapes = [self.shape] if not self.context else [self.shape, (self.context,)]
        return tuple(torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for shape in shapes)


class Net(nn.Sequential):
    """An MLP, or with `kernel` a convolutional network, that takes nflows' context and ignores it."""

    def __init__(self, inputs: int, outputs: int, hidden: int = 16, kernel: int = 0) -> None:
        layer = partial(nn.Conv2d, kernel_size=kernel, padding=kernel // 2) if kernel else nn.Linear
        super().__init__(layer(inputs, hidden), nn.ReLU(), layer(hidden, outputs))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


conv = partial(Net, kernel=3)


def _nflows(name: str, *transforms: Callable[[], nn.Module], shape: tuple[int, ...] = (D,), latent: tuple | None = None,
            context: int = 0, left: tuple[str, ...] = ()) -> Model:
    def make() -> nn.Module:
        return nflows.flows.Flow(nflows.transforms.CompositeTransform([each() for each in transforms]),
                                 nflows.distributions.StandardNormal(latent or shape))

    return Model(f"nflows {name}", make, lambda m, x, *c: m.log_prob(x, *c), lambda m, x, *c: m._transform(x, *c),
                 lambda m, z, *c: m._transform.inverse(z, *c), lambda m, count, *c: m.sample(count, *c), shape, context,
                 left)


def _residual(inputs: int, outputs: int) -> nn.Module:
    return nflows.nn.nets.ResidualNet(inputs, outputs, 16, context_features=CONTEXT, num_blocks=1)


def _conv_residual(inputs: int, outputs: int) -> nn.Module:
    return nflows.nn.nets.ConvResidualNet(inputs, outputs, 8, num_blocks=1)


def _multiscale() -> nn.Module:
    transforms, channels = nflows.transforms, IMAGE[0]
    whole = transforms.MultiscaleCompositeTransform(2)
    shape = IMAGE
    for _ in range(2):
        channels, squeezed = 4 * shape[0], (4 * shape[0], shape[1] // 2, shape[2] // 2)
        level = transforms.CompositeTransform([
            transforms.SqueezeTransform(), transforms.ActNorm(channels), transforms.OneByOneConvolution(channels),
            transforms.AffineCouplingTransform(torch.arange(channels) % 2, _conv_residual)])
        shape = whole.add_transform(level, squeezed)
    return whole


def _nflows_models() -> list[Model]:
    t = nflows.transforms
    even, odd, mixed = torch.arange(D) % 2, (torch.arange(D) + 1) % 2, torch.tensor([1, 0, 0, 1, 1, 0])
    affine = [partial(t.AffineCouplingTransform, mask, Net) for mask in (even, odd, mixed)]
    conditional = [partial(t.AffineCouplingTransform, mask, _residual) for mask in (even, odd)]
    free = partial(t.AffineCouplingTransform, even, Net, unconditional_transform=lambda features: t.LULinear(features))
    return [
        _nflows("RealNVP", *affine),
        _nflows("NICE", *(partial(t.AdditiveCouplingTransform, mask, Net) for mask in (even, odd, mixed)),
                partial(t.PointwiseAffineTransform, torch.zeros(D), torch.full((D,), 1.5))),
        _nflows("conditional RealNVP", partial(t.ActNorm, D), partial(t.LULinear, D, identity_init=False),
                *conditional, context=CONTEXT),
        _nflows("MAF", partial(t.MaskedAffineAutoregressiveTransform, D, 16), partial(t.ReversePermutation, D),
                partial(t.MaskedAffineAutoregressiveTransform, D, 16)),
        _nflows("conditional MAF", partial(t.MaskedAffineAutoregressiveTransform, D, 16, context_features=CONTEXT),
                partial(t.RandomPermutation, D),
                partial(t.MaskedAffineAutoregressiveTransform, D, 16, context_features=CONTEXT), context=CONTEXT),
        _nflows("linear", partial(t.LULinear, D, identity_init=False), partial(t.NaiveLinear, D),
                partial(t.RandomPermutation, D), affine[0]),
        _nflows("unconditional part", free, affine[1]),
        _nflows("batch norm", partial(t.BatchNorm, D), *affine, left=("BatchNorm",)),
        _nflows("Glow", _multiscale, shape=IMAGE, latent=(IMAGE[0] * IMAGE[1] * IMAGE[2],)),
    ]


def _normflows(name: str, make: Callable[[], nn.Module], **options: object) -> Model:
    def decode(m: nn.Module, z: Tensor, *c: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = m.forward_and_log_det(z, *c)
        return x, log_det.detach().float()  # normflows sums it in float32, its gradient too, in float64 models

    return Model(f"normflows {name}", make, lambda m, x, *c: m.log_prob(x, *c),
                 lambda m, x, *c: m.inverse_and_log_det(x, *c), decode,
                 lambda m, count, *c: m.sample(count, *c), **options)


def _flow(*flows: Callable[[], nn.Module], base: Callable[[], nn.Module] | None = None) -> Callable[[], nn.Module]:
    base = base or partial(normflows.distributions.DiagGaussian, D)
    return lambda: normflows.NormalizingFlow(base(), [each() for each in flows])


def _glow() -> nn.Module:
    channels, _, _ = IMAGE
    merges, bases, levels = [], [], []
    for level in range(2):
        inside = 4 * channels if level == 0 else 2 * channels * 4
        levels.insert(0, [*(normflows.flows.GlowBlock(inside, 16, init_zeros=False) for _ in range(2)),
                          normflows.flows.Squeeze()])
        shape = (inside // 2, 4, 4) if level == 0 else (inside, 2, 2)
        bases.insert(0, normflows.distributions.DiagGaussian(shape))
        if level == 0:
            merges.insert(0, normflows.flows.Merge())
    return normflows.MultiscaleFlow(bases, levels, merges, class_cond=False)


def _glow_log_prob(model: nn.Module, x: Tensor) -> Tensor:
    return model.log_prob(x, None)


def _normflows_models() -> list[Model]:
    f, half = normflows.flows, D // 2

    def block(**options: object) -> Callable[[], nn.Module]:
        return lambda: f.AffineCouplingBlock(Net(half, D if options.get("scale", True) else half), **options)

    def masked() -> nn.Module:
        return f.MaskedAffineFlow((torch.arange(D) % 2).float(), Net(D, D), Net(D, D))

    def checkerboard() -> nn.Module:
        return f.AffineCouplingBlock(Net(IMAGE[0], 2 * IMAGE[0], kernel=3), split_mode="checkerboard")

    swap = partial(f.Permute, D, mode="swap")
    mixture = partial(normflows.distributions.GaussianMixture, 3, D)
    image_base = partial(normflows.distributions.DiagGaussian, IMAGE)
    return [
        _normflows("RealNVP", _flow(block(), swap, block(), partial(f.ActNorm, (D,)))),
        _normflows("RealNVP sigmoid", _flow(block(scale_map="sigmoid"), partial(f.Permute, D),
                                            block(scale_map="sigmoid_inv", split_mode="channel_inv"))),
        _normflows("NICE", _flow(block(scale=False), swap, block(scale=False), partial(f.AffineConstFlow, (D,)))),
        _normflows("masked", _flow(masked, masked)),
        _normflows("MAF", _flow(partial(f.MaskedAffineAutoregressive, D, 16), swap,
                                partial(f.MaskedAffineAutoregressive, D, 16))),
        _normflows("linear", _flow(partial(f.LULinearPermute, D), block(), partial(f.InvertibleAffine, D),
                                   partial(f.InvertibleAffine, D, use_lu=False))),
        _normflows("mixture base", _flow(block(), swap, block(), base=mixture)),
        _normflows("checkerboard", _flow(checkerboard, partial(f.Invertible1x1Conv, IMAGE[0], use_lu=True),
                                         partial(f.Invertible1x1Conv, IMAGE[0]), base=image_base), shape=IMAGE),
        _normflows("Glow", _glow, shape=IMAGE)._replace(log_prob=_glow_log_prob),
    ]


def _standard_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + torch.log(torch.tensor(2 * torch.pi))).flatten(1).sum(1)


def _freia(name: str, build: Callable[[], nn.Module], **options: object) -> Model:
    def encode(m, x, *c):
        return m(x, c=c) if c else m(x)

    def decode(m, z, *c):
        return m(z, c=c, rev=True) if c else m(z, rev=True)

    def log_prob(m, x, *c):
        z, log_det = encode(m, x, *c)
        return _standard_normal(z) + log_det

    return Model(f"FrEIA {name}", build, log_prob, encode, decode, None, **options)


def _sequence(*blocks: tuple, shape: tuple[int, ...] = (D,), context: bool = False) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        inn = FrEIA.framework.SequenceINN(*shape)
        for kind, options in blocks:
            given = {"cond": 0, "cond_shape": (CONTEXT,)} if context and "subnet_constructor" in options else {}
            inn.append(kind, **given, **options)
        return inn

    return build


def _freia_graph() -> nn.Module:
    fm, ff = FrEIA.modules, FrEIA.framework
    nodes = [ff.InputNode(*IMAGE, name="in")]
    nodes.append(ff.Node(nodes[-1], fm.IRevNetDownsampling, {}))
    nodes.append(ff.Node(nodes[-1], fm.GLOWCouplingBlock, {"subnet_constructor": conv}))
    nodes.append(ff.Node(nodes[-1], fm.Fixed1x1Conv, {"M": torch.linalg.qr(torch.randn(16, 16))[0]}))
    nodes.append(ff.Node(nodes[-1], fm.AllInOneBlock, {"subnet_constructor": conv}))
    nodes.append(ff.Node(nodes[-1], fm.Flatten, {}))
    nodes.append(ff.OutputNode(nodes[-1]))
    return ff.GraphINN(nodes)


def _freia_models() -> list[Model]:
    m, net = FrEIA.modules, {"subnet_constructor": Net}
    return [
        _freia("GLOW", _sequence((m.GLOWCouplingBlock, net), (m.PermuteRandom, {}), (m.GLOWCouplingBlock, net))),
        _freia("conditional RNVP", _sequence((m.RNVPCouplingBlock, net), (m.PermuteRandom, {}),
                                             (m.RNVPCouplingBlock, net), context=True), context=CONTEXT),
        _freia("NICE", _sequence((m.NICECouplingBlock, net), (m.ActNorm, {}), (m.NICECouplingBlock, net)),
               left=("NICECouplingBlock",)),
        _freia("GIN", _sequence((m.GINCouplingBlock, net), (m.PermuteRandom, {}), (m.GINCouplingBlock, net))),
        _freia("AllInOne", _sequence((m.AllInOneBlock, net), (m.AllInOneBlock, {**net, "permute_soft": True}),
                                     (m.AllInOneBlock, {**net, "learned_householder_permutation": 2}))),
        _freia("conditional AllInOne", _sequence((m.AllInOneBlock, net), (m.AllInOneBlock, {**net, "gin_block": True}),
                                                 context=True), context=CONTEXT),
        _freia("one-sided", _sequence((m.AffineCouplingOneSided, net), (m.HouseholderPerm, {"n_reflections": 2}),
                                      (m.ConditionalAffineTransform, net), context=True), context=CONTEXT),
        _freia("linear", _sequence((m.FixedLinearTransform, {"M": torch.eye(D) + 0.1, "b": torch.ones(D)}),
                                   (m.OrthogonalTransform, {}), (m.GLOWCouplingBlock, net))),
        _freia("images", _freia_graph, shape=IMAGE),
    ]


def _zuko(name: str, make: Callable[[], nn.Module], **options: object) -> Model:
    return Model(f"zuko {name}", make, lambda m, x, *c: m(*c).log_prob(x),
                 lambda m, x, *c: m.transform(*c).call_and_ladj(x),
                 lambda m, z, *c: m.transform(*c).inv.call_and_ladj(z),
                 lambda m, count, *c: m(*c).sample((count,)), **options)


def _zuko_linear() -> nn.Module:
    t, lazy = zuko.transforms, zuko.lazy
    unconditional, coupling = lazy.UnconditionalTransform, zuko.flows.coupling.GeneralCouplingTransform
    return lazy.Flow(
        [unconditional(t.LULinearTransform, torch.eye(D) + 0.1 * torch.randn(D, D)), coupling(D, hidden_features=(16,)),
         unconditional(t.RotationTransform, torch.randn(D, D)),
         unconditional(t.PermutationTransform, torch.randperm(D), buffer=True), coupling(D, hidden_features=(16,))],
        zuko.mixtures.GMM(D, components=3, covariance_type="diagonal"))


def _zuko_models() -> list[Model]:
    hidden = {"hidden_features": (16, 16)}
    additive = {"univariate": zuko.transforms.AdditiveTransform, "shapes": [()]}
    return [
        _zuko("RealNVP", partial(zuko.flows.RealNVP, D, **hidden)),
        _zuko("conditional RealNVP", partial(zuko.flows.RealNVP, D, CONTEXT, randmask=True, **hidden), context=CONTEXT),
        _zuko("NICE", partial(zuko.flows.NICE, D, **hidden, **additive)),
        _zuko("MAF", partial(zuko.flows.MAF, D, **hidden)),
        _zuko("conditional MAF", partial(zuko.flows.MAF, D, CONTEXT, passes=2, **hidden), context=CONTEXT),
        _zuko("linear", _zuko_linear),
    ]


MODELS = (*_nflows_models(), *_normflows_models(), *_freia_models(), *_zuko_models())
