"""The serving table: which backend serves each kind of call here, found by making the call and watching who ran."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

import fastflow.ops
from fastflow.bench.cases import SCALE_MAPS
from fastflow.bench.watching import watch
from fastflow.models import conditional_flow
from fastflow.nn import FlowClassHead
from fastflow.ops import (
    ScaleMap,
    act_norm,
    affine_coupling,
    dequantize_logit,
    elementwise_affine,
    gaussian_class_marginal,
    gaussian_class_scores,
    logit,
    mlp,
    permute,
    sym_log,
    uniform_noise,
)
from fastflow.ops.channel_map import channel_map
from fastflow.ops.channel_mix import map_channels


@dataclass(frozen=True)
class Cell:
    """Who served one kind of call: `backend` is "reference", "cpu", "triton", "cuda", or "views" if none was needed."""

    op: str
    variant: str
    layout: str
    dtype: str
    direction: str
    backend: str


LAYOUTS = (
    "[B, D]", "[B, C, H, W]", "channels_last", "all channels", "interleaved", "mask", "broadcast mask", "strided",
    "transposed", "offset", "interleaved parameters", "stride 0 parameters",
)
# dtype of x, dtype of scale and shift
DTYPES = {
    "float64": (torch.float64, torch.float64), "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16), "float16": (torch.float16, torch.float16),
    "float32 / bfloat16": (torch.float32, torch.bfloat16), "float32 / float16": (torch.float32, torch.float16),
    "bfloat16 / float32": (torch.bfloat16, torch.float32), "float64 / float32": (torch.float64, torch.float32),
}
_SINGLE_DTYPES = {name: both[0] for name, both in DTYPES.items() if "/" not in name}
DIRECTIONS = ("forward", "inverse", "backward", "inverse backward")
_ROWS, _CHANNELS, _SPACE = 5, 6, (3, 5)


def observe(device: str = "cpu") -> Iterator[Cell]:
    """Makes every kind of call of every op that has a kernel; yields who served each."""
    yield from observe_act_norm(device)
    yield from observe_affine_coupling(device)
    yield from observe_gaussian_class_scores(device)
    yield from observe_residual_coupling(device)
    yield from observe_channel_mix(device)
    yield from observe_elementwise(device)
    yield from observe_dequantize_logit(device)
    yield from observe_uniform_noise(device)
    if device == "cpu":  # elsewhere its products are the vendor's
        yield from observe_mlp()
        yield from observe_permute()


def observe_affine_coupling(device: str = "cpu") -> Iterator[Cell]:
    """Every scale map with either shift order, layout, dtype and direction."""
    for kind, shift_first, layout, dtype, direction in product(SCALE_MAPS, (False, True), LAYOUTS, DTYPES, DIRECTIONS):
        inverse, backward = direction.startswith("inverse"), direction.endswith("backward")
        x, scale, shift, where = _arguments(layout, *DTYPES[dtype], device)
        gain = torch.ones(shift.shape[1], device=device) if kind == "tanh" else None
        scale_map = ScaleMap(kind, gain=gain, shift_first=shift_first, **SCALE_MAPS[kind])
        scale = None if kind == "additive" else scale
        leaves = [leaf.requires_grad_(backward) for leaf in (x, scale, shift) if leaf is not None]
        with watch(device) as served:
            outputs = affine_coupling(x, scale, shift, scale_map=scale_map, inverse=inverse, **where)
            if backward:
                torch.autograd.grad(outputs[0].sum(), leaves)
        backend = served["affine_coupling"]
        if backward:  # autograd differentiates a reference by itself
            backend = served.get("affine_coupling_backward", "reference" if backend == "reference" else "views")
        variant = f"{kind}, shift first" if shift_first else kind
        yield Cell("affine_coupling", variant, layout, dtype, direction, backend)


def _arguments(layout: str, x_dtype: torch.dtype, dtype: torch.dtype, device: str) -> tuple:
    """x, scale, shift in the layout's memory, and how the call names the active part."""
    space = () if layout == "[B, D]" else _SPACE
    whole = layout in ("all channels", "mask", "broadcast mask")
    active = _CHANNELS if whole else _CHANNELS // 2
    place = _PLACES.get(layout, Tensor.contiguous)
    x = place(torch.randn(_ROWS, _CHANNELS, *space, device=device).to(x_dtype))
    if layout == "interleaved parameters":
        packed = torch.randn(_ROWS, 2 * active, *space, device=device).to(dtype)
        shift, scale = packed[:, 0::2], packed[:, 1::2]
    else:
        scale, shift = (place(torch.randn(_ROWS, active, *space, device=device).to(dtype)) for _ in range(2))
    if layout == "stride 0 parameters":
        scale, shift = scale[:1, :, :1].expand_as(scale), shift[:, :, :1].expand_as(shift)
    if layout == "interleaved":
        return x, scale, shift, {"active": slice(1, None, 2)}
    if "mask" in layout:
        mask = torch.rand(_CHANNELS if layout == "mask" else 1, *space, device=device) < 0.5
        return x, scale, shift, {"mask": mask}
    return x, scale, shift, {} if whole else {"active": slice(active, None)}


def _strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


def _offset(x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


_PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": _strided,
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "offset": _offset,
}


def observe_gaussian_class_scores(device: str = "cpu") -> Iterator[Cell]:
    """Every dtype, form of the standard deviations and layout of z; scores, their reductions, and their gradients."""
    scales = {"class diag": (3, 6), "shared diag": (1, 6), "isotropic": (3, 1), "one scale": (1, 1)}
    layouts = ("[B, D]", "strided", "transposed", "offset")
    for form, layout, dtype, direction in product(scales, layouts, DTYPES, ("forward", "backward")):
        x_dtype, parameter_dtype = DTYPES[dtype]
        z, means, log_scales, log_prior = (
            torch.randn(size, device=device) for size in ((_ROWS, 6), (3, 6), scales[form], (3,)))
        z = _PLACES.get(layout, Tensor.contiguous)(z.to(x_dtype)).requires_grad_(direction == "backward")
        parameters = [p.to(parameter_dtype) for p in (means, log_scales, log_prior)]
        labels = torch.arange(_ROWS, device=device) % 4 - 1
        for call, settings in ((gaussian_class_scores, ()), (gaussian_class_marginal, (labels,))):
            with watch(device) as served:
                result = call(z, *parameters, *settings)
                if direction == "backward":
                    torch.autograd.grad(result.sum(), z)
            name = "gaussian_class_scores" + ("_backward" if direction == "backward" else "")
            variant = f"{call.__name__.removeprefix('gaussian_class_')}, {form}"
            yield Cell("gaussian_class_scores", variant, layout, dtype, direction, served.get(name, "reference"))


def observe_residual_coupling(device: str = "cpu") -> Iterator[Cell]:
    """Through the class head that is made of it: every dtype that it has, and bfloat16 by autocast."""
    for dtype, direction in product(("float64", "float32", "float32 / bfloat16"), ("forward", "backward")):
        if device == "cuda" and dtype == "float64":
            continue
        head = FlowClassHead(conditional_flow(6, 3, levels=2, steps=1, hidden=8, blocks=1), 6, 3)
        head = head.to(device, DTYPES[dtype][0])
        z = torch.randn(_ROWS, 6, device=device, dtype=DTYPES[dtype][0])
        with watch(device) as served, torch.autocast(device, torch.bfloat16, enabled="bfloat16" in dtype):
            scores = head.scores(z)
            if direction == "backward":
                scores.sum().backward()
        name = "residual_coupling" + ("_backward" if direction == "backward" else "")
        yield Cell("residual_coupling", "", "[B, D]", dtype, direction, served.get(name, "reference"))


def observe_act_norm(device: str = "cpu") -> Iterator[Cell]:
    """Both forms, every layout, dtype and direction."""
    forms = {"shift first": act_norm, "shift last": elementwise_affine}
    for form, layout, dtype, direction in product(forms, ("[B, D]", "[B, C, H, W]", *_PLACES), DTYPES, DIRECTIONS):
        inverse, backward = direction.startswith("inverse"), direction.endswith("backward")
        x_dtype, parameter_dtype = DTYPES[dtype]
        x = torch.randn(_ROWS, _CHANNELS, *(() if layout == "[B, D]" else _SPACE), device=device)
        x = _PLACES.get(layout, Tensor.contiguous)(x.to(x_dtype)).requires_grad_(backward)
        shift, log_scale = torch.randn(2, _CHANNELS, device=device).to(parameter_dtype)
        with watch(device) as served:
            z, _ = forms[form](x, shift, log_scale, inverse=inverse)
            if backward:
                torch.autograd.grad(z.sum(), x)
        backend = served.get("act_norm_backward", "reference") if backward else served["act_norm"]
        yield Cell("act_norm", form, layout, dtype, direction, backend)


def observe_elementwise(device: str = "cpu") -> Iterator[Cell]:
    """Every layout, dtype and direction of the bijections without parameters."""
    layouts = ("[B, D]", "[B, C, H, W]", *_PLACES)
    for op, layout, dtype, direction in product((logit, sym_log), layouts, DTYPES, DIRECTIONS):
        name = op.__name__
        inverse, backward = direction.startswith("inverse"), direction.endswith("backward")
        x = torch.rand(_ROWS, _CHANNELS, *(() if layout == "[B, D]" else _SPACE), device=device)
        x = _PLACES.get(layout, Tensor.contiguous)(x.to(DTYPES[dtype][0])).requires_grad_(backward)
        with watch(device) as served:
            z, _ = op(x, inverse=inverse)
            if backward:
                torch.autograd.grad(z.sum(), x)
        backend = served.get(f"{name}_backward", "reference") if backward else served[name]
        yield Cell(name, "", layout, dtype, direction, backend)


def observe_dequantize_logit(device: str = "cpu") -> Iterator[Cell]:
    """Every layout, dtype of z, with noise and without, of uint8 and of other integers."""
    layouts, integers = ("[B, D]", "[B, C, H, W]", *_PLACES), (torch.uint8, torch.int64)
    for layout, dtype, keyed, integer in product(layouts, _SINGLE_DTYPES, (True, False), integers):
        x = torch.randint(256, (_ROWS, _CHANNELS, *(() if layout == "[B, D]" else _SPACE)), device=device)
        x = _PLACES.get(layout, Tensor.contiguous)(x.to(integer))
        key = {"seed": 0, "rows": torch.arange(_ROWS, device=device)} if keyed else {}
        with watch(device) as served:
            dequantize_logit(x, levels=256, dtype=_SINGLE_DTYPES[dtype], **key)
        variant = f"{str(integer).removeprefix('torch.')}, {'noise' if keyed else 'middle'}"
        yield Cell("dequantize_logit", variant, layout, dtype, "forward", served["dequantize_logit"])


def observe_uniform_noise(device: str = "cpu") -> Iterator[Cell]:
    """Either dtype, key from the host and on the device."""
    rows = torch.arange(_ROWS, device=device)
    for dtype, step in product(("float64", "float32"), (0, torch.zeros((), dtype=torch.int64, device=device))):
        with watch(device) as served:
            uniform_noise((_ROWS, 7), seed=0, step=step, rows=rows, dtype=_SINGLE_DTYPES[dtype])
        variant = "device step" if isinstance(step, Tensor) else "host step"
        yield Cell("uniform_noise", variant, "[B, ...]", dtype, "forward", served["uniform_noise"])


def observe_mlp() -> Iterator[Cell]:
    """Either dtype, every layout of x and of the matrices, with one layer and more."""
    layouts = ("[B, D]", "strided", "transposed", "offset")
    directions = ("forward", "backward")
    for widths, layout, dtype, direction in product(((6, 3), (6, 8, 3)), layouts, ("float64", "float32"), directions):
        place, shapes = _PLACES.get(layout, Tensor.contiguous), [(_ROWS, 6), *zip(widths[1:], widths, strict=False)]
        x, *weights = (place(torch.randn(shape).to(_SINGLE_DTYPES[dtype])).requires_grad_(direction == "backward")
                       for shape in shapes)
        parameters = [each for weight in weights for each in (weight, weight[:, 0])]
        with watch() as served:
            out = mlp(x, parameters)
            if direction == "backward":
                torch.autograd.grad(out.sum(), x)
        backend = served.get("mlp_backward", "reference") if direction == "backward" else served["mlp"]
        yield Cell("mlp", f"{len(weights)} layers", layout, dtype, direction, backend)


def observe_permute() -> Iterator[Cell]:
    """Matrices of either dtype; other tensors are PyTorch's."""
    order = torch.randperm(_CHANNELS)
    for layout, dtype, direction in product(("[B, D]", "strided", "transposed", "offset"), ("float64", "float32"),
                                            DIRECTIONS):
        inverse, backward = direction.startswith("inverse"), direction.endswith("backward")
        x = _PLACES.get(layout, Tensor.contiguous)(torch.randn(_ROWS, _CHANNELS).to(_SINGLE_DTYPES[dtype]))
        z = permute(x.requires_grad_(), order, inverse=inverse) if backward else None
        with watch() as served:
            if backward:
                torch.autograd.grad(z, x, torch.ones_like(z))
            else:
                permute(x, order, inverse=inverse)
        yield Cell("permute", "", layout, dtype, direction, served.get("permute_columns", "reference"))


def observe_channel_mix(device: str = "cpu") -> Iterator[Cell]:
    """On one tensor and on pairs: every layout, dtype and direction; an inverse is the map of another matrix."""
    layouts, directions = ("[B, D]", "[B, C, H, W]", *_PLACES), ("forward", "backward")
    for variant, layout, dtype, direction in product(("whole", "pair"), layouts, DTYPES, directions):
        x = torch.randn(_ROWS, _CHANNELS, *(() if layout == "[B, D]" else _SPACE), device=device)
        place = _PLACES.get(layout, Tensor.contiguous)
        parts = [place(part.to(DTYPES[dtype][0])).requires_grad_(direction == "backward")
                 for part in ([x] if variant == "whole" else x.split([2, _CHANNELS - 2], 1))]
        given = channel_map(torch.eye(_CHANNELS, device=device))
        with watch(device) as served:
            z, _ = map_channels(parts[0], given) if variant == "whole" else map_channels(tuple(parts), given, split=3)
            if direction == "backward":
                torch.autograd.grad(z.sum() if variant == "whole" else z[0].sum(), parts)
        backend = served.get("channel_mix_backward", "reference") if direction == "backward" else served["channel_mix"]
        yield Cell("channel_mix", variant, layout, dtype, direction, backend)


def markdown(cells: Iterable[Cell]) -> str:
    """A line for each op and layout, a column for each dtype of x (/ of its parameters). A cell names the backend of
    all variants and directions, or says which of them another one serves."""
    cells = list(cells)
    lines = ["| op, layout | " + " | ".join(DTYPES) + " |", "|---" * (len(DTYPES) + 1) + "|"]
    for op, layout in dict.fromkeys((cell.op, cell.layout) for cell in cells):
        columns = [[c for c in cells if (c.op, c.layout, c.dtype) == (op, layout, dtype)] for dtype in DTYPES]
        lines.append(f"| {op} {layout} | " + " | ".join(map(_summary, columns)) + " |")
    if any(cell.backend == "views" for cell in cells):
        lines += ["", "The gradients of an additive coupling are views of the incoming ones: no kernel."]
    plain = [name for name in fastflow.ops.__all__ if name.islower() and name not in {cell.op for cell in cells}]
    return "\n".join([*lines, "", f"No kernel of their own: {', '.join(plain)}."])


def _summary(cells: list[Cell]) -> str:
    if not cells:
        return "-"
    kernels = Counter(cell.backend for cell in cells if cell.backend != "views")
    usual = kernels.most_common(1)[0][0]
    others = {f"{c.backend}: {c.variant} {c.direction}" for c in cells if c.backend not in (usual, "views")}
    return "; ".join([usual, *sorted(others)])
