"""Tiny checkpoints of the public FlowGMM code, and what its formulas make of them, in float64 and by their names alone.

Weights are a formula of their name's place, so that no file need be stored.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES, HIDDEN, BLOCKS, PIXELS = 3, 4, 2, 8
FEATURES, COUPLINGS = 5, 3  # of the tabular net
BOARDS, HALVES = ("board 0", "board 1", "board 0"), ("first", "second", "first")

# Couplings in their order, as (name, channels, width, kind), and "squeeze" and "keep" between them.
REAL_NVP = [
    *((f"body.2.{n}.module1", 3, HIDDEN, kind) for n, kind in enumerate(BOARDS)), "squeeze",
    *((f"body.4.{n}.module1", 12, 2 * HIDDEN, kind) for n, kind in enumerate(HALVES)), "keep",
    *((f"body.6.{n}.module1", 6, 2 * HIDDEN, kind) for n, kind in enumerate(BOARDS)),
    ("body.7.0.module1", 6, 2 * HIDDEN, "board 1"),
]
REAL_NVP_MNIST = [
    *((f"body.{2 + n}.0.module1", 1, HIDDEN, kind) for n, kind in enumerate(BOARDS)), "squeeze",
    *((f"body.{6 + n}.0.module1", 4, HIDDEN, kind) for n, kind in enumerate(HALVES)), "keep",
    *((f"body.{10 + n}.0.module1", 2, HIDDEN, kind) for n, kind in enumerate(BOARDS)), "squeeze",
    *((f"body.{14 + n}.0.module1", 8, HIDDEN, kind) for n, kind in enumerate(HALVES)), "keep",
    *((f"body.{18 + n}.0.module1", 4, HIDDEN, kind) for n, kind in enumerate((*BOARDS, "board 1"))),
]
NETS = {"RealNVP": (REAL_NVP, 3), "RealNVPMNIST": (REAL_NVP_MNIST, 1)}


def checkpoint(net: str) -> tuple[dict[str, Tensor], Tensor]:
    """(state_dict, means) of "RealNVP", "RealNVPMNIST" or "RealNVPTabular", float64."""
    shapes = dict(_tabular_shapes() if net == "RealNVPTabular" else _image_shapes(NETS[net][0]))
    state = {}
    for k, name in enumerate(sorted(shapes)):
        wave = torch.sin(0.7 * torch.arange(math.prod(shapes[name]), dtype=torch.float64) + 1.3 * k).view(shapes[name])
        around_one = name.endswith(("weight_g", "norm.weight", "running_var"))
        state[name] = 1 + 0.3 * wave if around_one else wave if name.endswith("weight_v") else 0.3 * wave
        if name.endswith(("rescale.weight_g", "out_conv.conv.weight_g")):
            state[name] *= 0.2  # or 16 couplings multiply to anything
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
    features = FEATURES if net == "RealNVPTabular" else NETS[net][1] * PIXELS**2
    return state, torch.sin(torch.arange(CLASSES * features, dtype=torch.float64)).view(CLASSES, features)


def images(net: str, rows: int = 3) -> Tensor:
    """Grey levels [rows, C, 8, 8], int64."""
    channels = NETS[net][1]
    return (torch.arange(rows * channels * PIXELS**2) * 97 % 256).view(rows, channels, PIXELS, PIXELS)


def vectors(rows: int = 3) -> Tensor:
    return torch.cos(torch.arange(rows * FEATURES, dtype=torch.float64)).view(rows, FEATURES)


@torch.no_grad()
def evaluate(net: str, state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """(z [B, D], log_det [B]) of grey levels, dequantised to the middle of each, or of vectors."""
    if net == "RealNVPTabular":
        return _evaluate_tabular(state, x)
    v = 0.9 * (x.double() + 0.5) / 256 + 0.05
    x = torch.log(v) - torch.log1p(-v)
    log_det = (math.log(0.9) - torch.log(v) - torch.log1p(-v)).flatten(1).sum(1)
    left = []
    for layer in NETS[net][0]:
        if layer == "squeeze":
            x = F.pixel_unshuffle(x, 2)
        elif layer == "keep":
            x, leaving = x.chunk(2, dim=1)
            left.append(leaving.flatten(1))
        else:
            name, channels, _, kind = layer
            passive = _passive(kind, channels, x.shape[-1])
            given = x * passive if kind.startswith("board") else x[:, passive[:, 0, 0].bool()]
            s, t = _net(state, f"{name}.st_net", given, kind.startswith("board")).chunk(2, dim=1)
            gain = state[f"{name}.rescale.weight_g"] * state[f"{name}.rescale.weight_v"].sign()
            s = gain * torch.tanh(s)
            if not kind.startswith("board"):  # to full width, zero where passive
                s, t = (torch.zeros_like(x).index_copy(1, (passive[:, 0, 0] == 0).nonzero()[:, 0], each)
                        for each in (s, t))
            active = 1 - passive
            x = passive * x + active * (x + t) * torch.exp(s)
            log_det = log_det + (active * s).flatten(1).sum(1)
    return torch.cat([*left, x.flatten(1)], dim=1), log_det


def _passive(kind: str, channels: int, size: int) -> Tensor:
    if kind.startswith("board"):
        board = (torch.arange(size)[:, None] + torch.arange(size)) % 2
        return (board if kind == "board 0" else 1 - board).double().expand(channels, size, size)
    first = (torch.arange(channels) < channels // 2).double()
    return (1 - first if kind == "first" else first).view(-1, 1, 1)


def _net(state: dict[str, Tensor], name: str, x: Tensor, doubled: bool) -> Tensor:
    def norm(place, h):
        mean, var, weight, bias = (state[f"{name}.{place}.{each}"].view(-1, 1, 1) for each in
                                   ("running_mean", "running_var", "weight", "bias"))
        return weight * (h - mean) / torch.sqrt(var + 1e-5) + bias

    def conv(place, h):
        direction = state[f"{name}.{place}.conv.weight_v"]
        length = direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        weight = state[f"{name}.{place}.conv.weight_g"] * direction / length
        return F.conv2d(h, weight, state.get(f"{name}.{place}.conv.bias"), padding=weight.shape[-1] // 2)

    x = norm("in_norm", x) * (2 if doubled else 1)
    h = conv("in_conv", torch.cat([x, -x], 1).relu())
    total = conv("in_skip", h)
    for n in range(BLOCKS):
        block = f"blocks.{n}"
        inner = conv(f"{block}.in_conv", norm(f"{block}.in_norm", h).relu())
        h = h + conv(f"{block}.out_conv", norm(f"{block}.out_norm", inner).relu())
        total = total + conv(f"skips.{n}", h)
    return conv("out_conv", norm("out_norm", total).relu())


def _evaluate_tabular(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    log_det = torch.zeros(len(x), dtype=torch.float64)
    for n in range(COUPLINGS):
        passive = ((torch.arange(FEATURES) < FEATURES // 2) ^ bool(n % 2)).double()
        h = x * passive
        for place in (0, 3, 5):
            weight, bias = (state[f"body.{n}.st_net.{place}.{each}"] for each in ("weight", "bias"))
            h = F.linear(h, weight, bias)
            h = h if place == 5 else h.relu()
        s, t = h.chunk(2, dim=1)
        s = state[f"body.{n}.rescale.weight_g"] * state[f"body.{n}.rescale.weight_v"].sign() * torch.tanh(s)
        x = passive * x + (1 - passive) * (x + t) * torch.exp(s)
        log_det = log_det + ((1 - passive) * s).sum(1)
    return x, log_det


def _image_shapes(couplings):
    for name, channels, width, kind in (layer for layer in couplings if not isinstance(layer, str)):
        channels = channels if kind.startswith("board") else channels // 2
        norms = {"in_norm": channels, "out_norm": width} | {
            f"blocks.{n}.{place}": width for n in range(BLOCKS) for place in ("in_norm", "out_norm")}
        convs = {"in_conv": (width, 2 * channels, 3), "in_skip": (width, width, 1),
                 "out_conv": (2 * channels, width, 1)}
        for n in range(BLOCKS):
            convs |= {f"blocks.{n}.in_conv": (width, width, 3), f"blocks.{n}.out_conv": (width, width, 3),
                      f"skips.{n}": (width, width, 1)}
        for place, size in norms.items():
            for each in ("weight", "bias", "running_mean", "running_var"):
                yield f"{name}.st_net.{place}.{each}", (size,)
            yield f"{name}.st_net.{place}.num_batches_tracked", ()
        for place, (outputs, inputs, kernel) in convs.items():
            yield f"{name}.st_net.{place}.conv.weight_v", (outputs, inputs, kernel, kernel)
            yield f"{name}.st_net.{place}.conv.weight_g", (outputs, 1, 1, 1)
            if not (place.startswith("blocks") and place.endswith("in_conv")):
                yield f"{name}.st_net.{place}.conv.bias", (outputs,)
        yield f"{name}.rescale.weight_g", (channels, 1, 1)
        yield f"{name}.rescale.weight_v", (channels, 1, 1)


def _tabular_shapes():
    for n in range(COUPLINGS):
        for place, (inputs, outputs) in {0: (FEATURES, HIDDEN), 3: (HIDDEN, HIDDEN), 5: (HIDDEN, 2 * FEATURES)}.items():
            yield f"body.{n}.st_net.{place}.weight", (outputs, inputs)
            yield f"body.{n}.st_net.{place}.bias", (outputs,)
        yield f"body.{n}.rescale.weight_g", (FEATURES,)
        yield f"body.{n}.rescale.weight_v", (FEATURES,)
