"""affine_coupling written as its formulas, and random arguments for it: what its tests compare every backend with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastflow.nn import AffineCoupling, Split
from fastflow.ops import ScaleMap

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SPLITS = ("all", "second", "odd", "mask")
MAPS = {
    "additive": ScaleMap("additive"),
    "exp": ScaleMap("exp"),
    "sigmoid": ScaleMap("sigmoid", bias=2.0, eps=1e-3),
    "sigmoid_no_eps": ScaleMap("sigmoid", bias=2.0),
    "softplus": ScaleMap("softplus", bias=0.5, eps=1e-3),
    "tanh": ScaleMap("tanh"),
    "tanh_gain": ScaleMap("tanh"),
    "clamp_atan": ScaleMap("clamp_atan", clamp=2.0),
    "clamp_tanh": ScaleMap("clamp_tanh", clamp=1.5),
    "clamp_sigmoid": ScaleMap("clamp_sigmoid", clamp=2.0),
    "soft_clip": ScaleMap("soft_clip", clamp=6.9),
    "inverse_sigmoid": ScaleMap("inverse_sigmoid", bias=2.0),
}


def eager(x, scale, shift, *, scale_map, active=None, mask=None, log_det=None, inverse=False):
    """The formulas as a user of PyTorch writes them, in the wider dtype of x and shift, without the reference."""
    dtype = torch.promote_types(x.dtype, shift.dtype)
    part = (x if active is None else x[:, active]).to(dtype)
    s, t = (None if scale is None else scale.to(dtype)), shift.to(dtype)
    c, log_c = _eager_scale(s, t, scale_map)
    if inverse:
        new = part / c - t if scale_map.shift_first else (part - t) / c
        log_c = -log_c
    else:
        new = (part + t) * c if scale_map.shift_first else part * c + t
    if mask is not None:
        new, log_c = torch.where(mask, part, new), torch.where(mask, 0.0, log_c)
    z = x.clone()
    z[:, slice(None) if active is None else active] = new.to(x.dtype)
    total = log_c.flatten(1).sum(1)
    return z, total if log_det is None else log_det + total


def log_det_terms(inputs: dict) -> Tensor:
    """For each row the sum of |log c|, and of the running log_det: what its rounding is relative to, in float64.

    Where log c is taken of a rounded c, that alone is an error of u, so such a term counts as at least 1.
    """
    inputs = cast(inputs, torch.float64)
    terms = _eager_scale(inputs["scale"], inputs["shift"], inputs["scale_map"])[1].abs()
    if inputs["scale_map"].kind in ("sigmoid", "softplus"):
        terms = terms.clamp(min=1)
    if inputs["mask"] is not None:
        terms = torch.where(inputs["mask"], 0.0, terms)
    terms = terms.flatten(1).sum(1)
    return terms if inputs["log_det"] is None else terms + inputs["log_det"].abs()


def _eager_scale(s: Tensor | None, t: Tensor, scale_map: ScaleMap) -> tuple[Tensor, Tensor]:
    kind, bias, eps, clamp, gain = (getattr(scale_map, name) for name in ("kind", "bias", "eps", "clamp", "gain"))
    if kind == "additive":
        return torch.ones_like(t), torch.zeros_like(t)
    if kind == "sigmoid":
        c = torch.sigmoid(s + bias) + eps
        return c, torch.log(c) if eps else F.logsigmoid(s + bias)
    if kind == "inverse_sigmoid":
        return 1 / torch.sigmoid(s + bias), -F.logsigmoid(s + bias)
    if kind == "softplus":
        c = F.softplus(s + bias) + eps
        return c, torch.log(c)
    log_c = {
        "exp": lambda: s,
        "tanh": lambda: (1.0 if gain is None else gain.to(s.dtype).reshape(-1, *[1] * (s.dim() - 2))) * torch.tanh(s),
        "clamp_atan": lambda: clamp * 0.636 * torch.atan(s),
        "clamp_tanh": lambda: clamp * torch.tanh(s),
        "clamp_sigmoid": lambda: clamp * 2 * (torch.sigmoid(s) - 0.5),
        "soft_clip": lambda: s / (1 + s.abs() / clamp),
    }[kind]()
    return torch.exp(log_c), log_c


def make_map(name: str, shift_first: bool = False, gain: Tensor | None = None) -> ScaleMap:
    """The scale map of that name in MAPS; only "tanh_gain" takes the gain."""
    m = MAPS[name]
    return ScaleMap(m.kind, m.bias, m.eps, m.clamp, gain if name == "tanh_gain" else None, shift_first)


def make_inputs(shape, name, *, shift_first=False, split="all", dtype=torch.float64, parameter_dtype=None,
                running=True) -> dict:
    """Keyword arguments of affine_coupling: random tensors at the scale of 1 that float32 holds exactly."""
    active = {"second": slice((shape[1] + 1) // 2, None), "odd": slice(1, None, 2)}.get(split)
    count = len(range(shape[1])[active or slice(None)])
    each = (shape[0], count, *shape[2:])
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "x": torch.randn(shape).to(dtype),
        "scale": None if name == "additive" else torch.randn(each).to(parameter_dtype or dtype),
        "shift": torch.randn(each).to(parameter_dtype or dtype),
        "scale_map": make_map(name, shift_first, 0.5 + torch.rand(count).to(accumulate)),
        "active": active,
        "mask": torch.rand(shape[1:]) < 0.5 if split == "mask" else None,
        "log_det": torch.randn(shape[0]).to(accumulate) if running else None,
    }


def make_coupling(split: Split, shape: tuple, scale_map: ScaleMap | None = None, **settings) -> AffineCoupling:
    """A coupling with a linear or convolutional conditioner whose outputs are of the size of 1."""
    given = {} if scale_map is None else {"scale_map": scale_map}
    parameters = 1 if scale_map is not None and scale_map.kind == "additive" else 2
    sizes = split.passive_channels(shape[0]), parameters * split.active_channels(shape[0])
    net = nn.Linear(*sizes) if len(shape) == 1 else nn.Conv2d(*sizes, 3, padding=1)
    nn.init.normal_(net.weight, std=0.5)
    return AffineCoupling(net, split, **given, **settings)


def cast(inputs: dict, dtype: torch.dtype) -> dict:
    """The same rounded values in another dtype, the gain of the scale map included."""

    def convert(value):
        return value.to(dtype) if isinstance(value, Tensor) and value.dtype != torch.bool else value

    return with_gain({name: convert(value) for name, value in inputs.items()}, convert(inputs["scale_map"].gain))


def with_gain(inputs: dict, gain: Tensor | None) -> dict:
    m = inputs["scale_map"]
    return {**inputs, "scale_map": ScaleMap(m.kind, m.bias, m.eps, m.clamp, gain, m.shift_first)}


def leaves(inputs: dict) -> dict[str, Tensor]:
    """Copies that ask for gradients, of every float tensor among the inputs, and of the gain."""
    tensors = {**inputs, "gain": inputs["scale_map"].gain}
    return {name: value.detach().clone().requires_grad_() for name, value in tensors.items()
            if isinstance(value, Tensor) and value.dtype != torch.bool}  # fmt: skip


def call(function, inputs: dict, tensors: dict[str, Tensor], inverse: bool = False) -> tuple[Tensor, Tensor]:
    """`function` on `inputs`, with `tensors` (as `leaves` names them) in place of their own."""
    tensors = dict(tensors)
    if "gain" in tensors:
        inputs = with_gain(inputs, tensors.pop("gain"))
    return function(**{**inputs, **tensors}, inverse=inverse)


def values(function, inputs: dict, inverse: bool) -> dict[str, Tensor]:
    """The outputs of `function` by name."""
    return dict(zip(("z", "log_det"), function(**inputs, inverse=inverse), strict=True))


def gradients(function, inputs: dict, weights: tuple[Tensor | None, Tensor | None], inverse: bool) -> dict[str, Tensor]:
    """The gradients of all `leaves`, given those of z and log_det (None: that output is not used)."""
    tensors = leaves(inputs)
    outputs = call(function, inputs, tensors, inverse)
    used = [(out, weight.to(out.dtype)) for out, weight in zip(outputs, weights, strict=True) if weight is not None]
    grads = torch.autograd.grad([out for out, _ in used], list(tensors.values()), [weight for _, weight in used],
                                materialize_grads=True)  # fmt: skip
    return dict(zip(tensors, grads, strict=True))


def bounds(compute, inputs: dict) -> tuple[dict, dict, dict]:
    """`compute` (inputs -> dict of tensors) in the storage dtype, in float32, and in float64 as the truth.

    Float64 has no wider truth here: its own rounding error is float32's on the same values, 2^-29 times as large.
    """
    truth, single = compute(cast(inputs, torch.float64)), compute(cast(inputs, torch.float32))
    if inputs["x"].dtype == torch.float64:
        scaled = {name: truth[name] + (single[name].double() - truth[name]) * 2.0**-29 for name in truth}
        return scaled, scaled, truth
    return compute(inputs), single, truth


CHANNEL_SPLITS = [
    Split.halves(),
    Split.halves("first"),
    Split.halves(passive=1),
    Split.halves("first", passive=2),
    Split.interleaved(),
    Split.interleaved("even"),
]


def every_split(shape: tuple[int, ...]) -> list[Split]:
    """A split of every kind that fits samples of `shape`."""
    boards = [Split.checkerboard(shape, parity) for parity in (0, 1)]
    scattered = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5  # the same in every test process
    return [*CHANNEL_SPLITS, *boards, Split.mask(scattered)]


def active_positions(split: Split, shape: tuple[int, ...]) -> Tensor:
    """Bool of `shape`, True where the split transforms."""
    if split.passive_mask is not None:
        return ~split.passive_mask
    active = torch.zeros(shape, dtype=torch.bool)
    active[split.active_slice(shape[0])] = True
    return active
