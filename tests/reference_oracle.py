"""The public SCNF code's model as plain functions of its state_dict, written from the formulas, for a tiny checkpoint.

Nothing here uses fastflow, so that a mistake in a layer cannot hide in both. Names are those of
SamsungLabs/semi-supervised-NFs; weights are a formula of their name's place, so that no file need be stored.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES, CONTEXT = 3, 4
PROBABILITIES = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) / 6


def trunk_layers(image: int, blocks: int) -> list[tuple]:
    """The trunk mnist-masked for square images of one channel: three scales of (kind, ...)."""
    layers: list[tuple] = [("logit",)]
    channels, size = 1, image
    for scale in range(3):
        for parity in (0, 1, 0):
            layers += [("mix", channels), ("masked", channels, size, parity, blocks), ("norm", channels)]
        if scale < 2:
            layers.append(("squeeze",))
            channels, size = 4 * channels, size // 2
        layers += [("mix", channels), ("halves", channels, blocks, 3, 0), ("norm", channels)] * 2
        if scale < 2:
            layers.append(("out",))
            channels //= 2
    return layers


def head_layers(features: int, levels: int, steps: int, blocks: int) -> list[tuple]:
    layers: list[tuple] = []
    for level in range(levels):
        layers += [("norm", features), ("mix", features), ("halves", features, blocks, 1, CONTEXT)] * steps
        if level < levels - 1:
            layers.append(("out",))
            features -= features // 2 + features // 2 % 2
    return layers


def _net_shapes(prefix: str, inputs: int, outputs: int, hidden: int, blocks: int, kernel: int) -> dict[str, tuple]:
    """Places in its nn.Sequential: with 3x3 kernels a padding comes before each convolution."""
    pads = int(kernel == 3)
    first, inner = pads, (1 + pads, 3 + 2 * pads)
    norm = first + 1 + blocks
    convs = {f"{first}": (hidden, inputs), f"{norm + 2 + pads}": (outputs, hidden)}
    convs |= {f"{first + 1 + b}.net.{place}": (hidden, hidden) for b in range(blocks) for place in inner}
    shapes = {}
    for place, (out, into) in convs.items():
        shapes |= {f"{prefix}.{place}.weight": (out, into, kernel, kernel), f"{prefix}.{place}.bias": (out,)}
    return shapes | _norm_shapes(f"{prefix}.{norm}", hidden)


def _norm_shapes(prefix: str, channels: int) -> dict[str, tuple]:
    return {f"{prefix}.logs": (channels,), f"{prefix}.bias": (channels,), f"{prefix}.requires_init": (1,)}


def flow_shapes(prefix: str, layers: list[tuple], hidden: int) -> dict[str, tuple]:
    """Name to shape of everything the layers keep."""
    shapes: dict[str, tuple] = {}
    for index, (kind, *sizes) in enumerate(layers):
        name = f"{prefix}.modules_.{index}"
        if kind == "mix":
            shapes[f"{name}.W"] = (sizes[0], sizes[0])
        elif kind == "norm":
            shapes |= _norm_shapes(name, sizes[0])
        elif kind == "masked":
            channels, size, _, blocks = sizes
            shapes[f"{name}.mask"] = (1, channels, size, size)
            shapes |= _net_shapes(f"{name}.net", channels, 2 * channels, hidden, blocks, 3)
        elif kind == "halves":
            channels, blocks, kernel, context = sizes
            for net in ("net1", "net2"):
                shapes |= _net_shapes(f"{name}.{net}", channels // 2 + context, channels, hidden, blocks, kernel)
    return shapes


def checkpoint(image: int = 8, features: int = 16, trunk_hidden: int = 4, head_hidden: int = 5) -> dict[str, Tensor]:
    """A float64 state_dict of the tiny model: element i of the k-th name is a sine of both, mixes and
    embedding lie round the identity, masks and constants are what the code puts there."""
    trunk, head = trunk_layers(image, blocks=4), head_layers(features, levels=2, steps=2, blocks=4)
    shapes = flow_shapes("flow.module", trunk, trunk_hidden) | flow_shapes("prior.flow", head, head_hidden)
    shapes["prior.flow.embeddings.weight"] = (CLASSES, CONTEXT)
    for base, width in (("deep_prior", features), ("shallow_prior", image * image - features)):
        shapes |= {f"prior.{base}.logsigma": (width,), f"prior.{base}.mean": (width,)}
    masks = {f"flow.module.modules_.{i}.mask": layer for i, layer in enumerate(trunk) if layer[0] == "masked"}
    state = {}
    for k, (name, shape) in enumerate(sorted(shapes.items())):
        wave = 0.05 * torch.sin(0.7 * torch.arange(math.prod(shape), dtype=torch.float64) + 1.3 * k).view(shape)
        if name in masks:
            _, channels, size, parity, _ = masks[name]
            i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
            wave = ((i + j + parity) % 2).double().expand(1, channels, size, size)
        elif name.endswith((".W", "embeddings.weight")):
            wave = wave + torch.eye(*shape, dtype=torch.float64)
        elif name.endswith((".mean", "requires_init")):
            wave = torch.zeros(shape, dtype=torch.uint8 if name.endswith("init") else torch.float64)
        state[name] = wave
    return state


def images(rows: int = 3, size: int = 8) -> Tensor:
    """[rows, 1, size, size] float64 in (0, 1)."""
    return ((torch.arange(rows * size * size) * 37 % 101).double().view(rows, 1, size, size) + 0.5) / 101


def _net(state: dict[str, Tensor], prefix: str, x: Tensor, blocks: int, kernel: int) -> Tensor:
    pads = int(kernel == 3)

    def conv(place: str, x: Tensor) -> Tensor:
        if pads:
            x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, state[f"{prefix}.{place}.weight"], state[f"{prefix}.{place}.bias"])

    first, norm = pads, pads + 1 + blocks
    h = conv(f"{first}", x)
    for b in range(blocks):
        block = f"{first + 1 + b}.net"
        h = h + conv(f"{block}.{3 + 2 * pads}", F.relu(conv(f"{block}.{1 + pads}", F.relu(h))))
    h = _norm(state, f"{prefix}.{norm}", h)
    return conv(f"{norm + 2 + pads}", F.relu(h))


def _norm(state: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    return (x - state[f"{prefix}.bias"].view(1, -1, 1, 1)) * state[f"{prefix}.logs"].view(1, -1, 1, 1).exp()


def _run(state: dict[str, Tensor], prefix: str, layers: list[tuple], x: Tensor, context: Tensor | None = None):
    """(z [B, D], log_det [B]) of a flow on x [B, C, H, W]."""
    log_det = torch.zeros(len(x), dtype=x.dtype)
    left = []
    for index, (kind, *sizes) in enumerate(layers):
        name, pixels = f"{prefix}.modules_.{index}", x.shape[2] * x.shape[3]
        if kind == "logit":
            p = 0.95 * x + 0.025
            log_det = log_det + (math.log(0.95) - p.log() - (1 - p).log()).sum((1, 2, 3))
            x = p.log() - (1 - p).log()
        elif kind == "mix":
            weight = state[f"{name}.W"]
            x = torch.einsum("ij,bjhw->bihw", weight, x)
            log_det = log_det + pixels * torch.linalg.slogdet(weight).logabsdet
        elif kind == "norm":
            x = _norm(state, name, x)
            log_det = log_det + pixels * state[f"{name}.logs"].sum()
        elif kind == "masked":
            mask = state[f"{name}.mask"]
            s, t = _net(state, f"{name}.net", mask * x, sizes[3], 3).chunk(2, dim=1)
            x = mask * x + (1 - mask) * (torch.sigmoid(s + 2) * x + t)
            log_det = log_det - ((1 - mask) * F.softplus(-s - 2)).sum((1, 2, 3))
        elif kind == "halves":
            _, blocks, kernel, _ = sizes
            first, second = x.chunk(2, dim=1)
            for net in ("net1", "net2"):
                given = second if context is None else torch.cat([second, context[..., None, None]], dim=1)
                s, t = _net(state, f"{name}.{net}", given, blocks, kernel).chunk(2, dim=1)
                scale = torch.sigmoid(s + 2) + 1e-6
                first, log_det = (first + t) * scale, log_det + scale.log().sum((1, 2, 3))
                first, second = second, first
            x = torch.cat([first, second], dim=1)
        elif kind == "squeeze":
            x = torch.cat([x[:, :, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], dim=1)
        elif kind == "out":
            k = x.shape[1] // 2 + x.shape[1] // 2 % 2
            left.append(x[:, :k].flatten(1))
            x = x[:, k:]
    return torch.cat([*left, x.flatten(1)], dim=1), log_det


def _normal(rho: Tensor, z: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, F.softplus(rho)).log_prob(z).sum(1)


def evaluate(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z [B, D], z_h [B, K, d], log_joint [B, K]) of the tiny model, each class by itself, in float64."""
    features = len(state["prior.deep_prior.logsigma"])
    z, log_det = _run(state, "flow.module", trunk_layers(x.shape[2], blocks=4), x)
    base = log_det + _normal(state["prior.shallow_prior.logsigma"], z[:, :-features])
    latents, joint = [], []
    for label in range(CLASSES):
        context = state["prior.flow.embeddings.weight"][label].expand(len(x), -1)
        head = head_layers(features, levels=2, steps=2, blocks=4)
        z_h, head_log_det = _run(state, "prior.flow", head, z[:, -features:, None, None], context)
        latents.append(z_h)
        log_prob = base + head_log_det + _normal(state["prior.deep_prior.logsigma"], z_h)
        joint.append(log_prob + PROBABILITIES[label].log())
    return z, torch.stack(latents, 1), torch.stack(joint, 1)
