"""What is measured, as data: ops, shapes, directions, minimum traffic, targets. Providers are in `providers.py`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import product
from math import prod

import torch

DIRECTIONS = ("forward", "inverse", "forward+backward", "backward")
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Case:
    """One measurement. `shape` and `variant` are the op's own (see its entry in OPS); one dtype for every tensor.

    "backward" is forward+backward without its forward, which is done once beforehand.
    """

    op: str
    shape: tuple[int, ...]
    variant: str
    direction: str
    dtype: str = "float32"

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def name(self) -> str:
        return f"{self.op}/{self.size}/{self.variant}/{self.direction}/{self.dtype}"

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def trains(self) -> bool:
        """Whether gradients are what is measured."""
        return self.direction in ("forward+backward", "backward")

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def bytes(self) -> int:
        """Minimum traffic: each needed input read once, each output written once; forward+backward is two passes."""
        return self._cost[0]

    @property
    def flops(self) -> int:
        """Additions, multiplications, divisions, each exp, log, tanh or atan counted as one."""
        return self._cost[1]

    @property
    def _cost(self) -> tuple[int, int]:
        traffic = OPS[self.op].traffic
        if self.direction != "backward":
            return traffic(self)
        both, forward = (traffic(replace(self, direction=other)) for other in ("forward+backward", "forward"))
        return both[0] - forward[0], both[1] - forward[1]

    @property
    def regime(self) -> str:
        """ "small" below 65,536 elements, where calls cost more than data; "memory" above 24 MB; "cache" between."""
        if self.elements < 65_536:
            return "small"
        return "memory" if self.bytes_forward > 24e6 else "cache"

    @property
    def bytes_forward(self) -> int:
        return replace(self, direction="forward").bytes

    @property
    def targets(self) -> dict[str, float]:
        """{provider: how many times its speed is wanted}, for float32 on a CPU; empty where no target is set."""
        return OPS[self.op].targets(self) if self.dtype == "float32" and self.direction != "backward" else {}


@dataclass(frozen=True)
class OpCases:
    """Everything about one op that a measurement needs to know."""

    shapes: tuple[tuple[int, ...], ...]
    variants: tuple[str, ...]
    directions: tuple[str, ...]
    traffic: Callable[[Case], tuple[int, int]]
    quick: tuple[tuple[tuple[int, ...], str, str], ...]
    full: Callable[[Case], bool] = lambda case: case.dtype == "float32"
    targets: Callable[[Case], dict[str, float]] = lambda case: {}
    dtypes: tuple[str, ...] = tuple(BYTES)


# Scale maps of affine_coupling by their settings; "tanh" also learns a gain for each channel.
SCALE_MAPS = {
    "additive": {},
    "exp": {},
    "sigmoid": {"bias": 2.0, "eps": 1e-3},
    "softplus": {"eps": 1e-3},
    "tanh": {},
    "clamp_atan": {"clamp": 2.0},
    "clamp_tanh": {"clamp": 2.0},
    "clamp_sigmoid": {"clamp": 2.0},
    "soft_clip": {"clamp": 2.0},
}
SOFT_CLAMPS = ("clamp_atan", "clamp_tanh", "clamp_sigmoid", "soft_clip")

# flops of (c, log c) for one element, and of the slope d log c / ds
_SCALE_FLOPS = {
    "additive": (0, 0), "exp": (1, 0), "sigmoid": (6, 5), "softplus": (5, 5), "tanh": (3, 4), "clamp_atan": (3, 3),
    "clamp_tanh": (3, 3), "clamp_sigmoid": (4, 4), "soft_clip": (4, 4),
}


def _affine_coupling_traffic(case: Case) -> tuple[int, int]:
    """Forward: x and z whole, scale and shift. Backward: the gradients of z and x whole; scale, the transformed half
    of what was saved, the gradients of scale and shift."""
    active, width, rows = case.elements, BYTES[case.dtype], case.shape[0]
    scaled = case.variant != "additive"
    scale_flops, slope_flops = _SCALE_FLOPS[case.variant]
    log_det_bytes = 4 * rows
    total = width * active * (5 + scaled) + 2 * log_det_bytes
    flops = active * (1 + 2 * scaled + scale_flops)
    if case.direction == "forward+backward":
        total += width * active * (5 + 3 * scaled) + log_det_bytes
        flops += active * scaled * (4 + scale_flops + slope_flops)
    return total, flops


# times the speed of each provider: issue figures of the affine coupling on two cores
_AFFINE_COUPLING_TARGETS = {
    ("call", "small"): {"compile": 3.0},
    ("call", "cache"): {"compile": 3.0, "eager": 4.0, "normflows": 5.0, "nflows": 15.0},
    ("call", "memory"): {"compile": 2.0, "eager": 4.0},
    ("training", "small"): {"compile": 2.4, "eager": 4.0},
    ("training", "cache"): {"compile": 2.4, "eager": 4.0},
    ("training", "memory"): {"compile": 1.5, "eager": 2.8},
}


def _affine_coupling_targets(case: Case) -> dict[str, float]:
    kind = "training" if case.direction == "forward+backward" else "call"
    targets = dict(_AFFINE_COUPLING_TARGETS[kind, case.regime])
    if kind == "call" and case.regime == "cache" and case.variant in SOFT_CLAMPS:
        targets["compile"] = 2.3
    return targets


_TABULAR, _TABULAR_LARGE, _IMAGE = (4096, 64), (65536, 64), (256, 12, 14, 14)


def _affine_coupling_full(case: Case) -> bool:
    if case.dtype == "bfloat16":
        return case.variant == "sigmoid" and case.shape in (_IMAGE, _TABULAR_LARGE)
    return case.dtype == "float32" and (case.variant in ("sigmoid", "tanh") or case.shape in (_TABULAR, _IMAGE))


# times the speed of each provider: the least that is asked of any op with a kernel
_FLOORS = {
    "small": {"compile": 3.0},
    "cache": {"compile": 3.0, "eager": 4.0},
    "memory": {"compile": 2.0, "eager": 4.0},
}


def _floors(case: Case) -> dict[str, float]:
    if case.direction == "forward+backward":
        return {"compile": 2.4, "eager": 4.0}
    return _FLOORS[case.regime]


def _bijection_traffic(case: Case, parameters: int, flops: int) -> tuple[int, int]:
    """Of an op that maps x to z by `parameters` numbers, with `flops` an element. Backward reads the gradient of z and
    what was saved, and writes the gradients of x and of the parameters."""
    width, elements, log_det_bytes = BYTES[case.dtype], case.elements, 4 * case.shape[0]
    total = width * (2 * elements + parameters) + 2 * log_det_bytes
    if case.direction == "forward+backward":
        return total + width * (3 * elements + 2 * parameters) + log_det_bytes, 3 * flops * elements
    return total, flops * elements


def classes(case: Case) -> int:
    """How many classes the case scores."""
    return int(case.variant.removeprefix("classes="))


def _gaussian_class_scores_traffic(case: Case) -> tuple[int, int]:
    """z [B, D] and the class parameters in, scores [B, K] out; 4 flops for each row, class and feature. Backward: all
    that and the gradient of the scores in, the gradients of z and of the parameters out."""
    (rows, features), width, count = case.shape, BYTES[case.dtype], classes(case)
    read, written = rows * features + count * (2 * features + 1), rows * count
    flops = 4 * rows * count * features
    if case.direction == "forward+backward":
        return width * (3 * read + 2 * written), 3 * flops
    return width * (read + written), flops


_NOISE_SHAPES = ((256, 1, 28, 28), (65536, 784))

OPS = {
    # shape: the transformed half; x has twice its channels. Variant: the scale map
    "affine_coupling": OpCases(
        shapes=((256, 32), _TABULAR, (64, 12, 16, 16), _IMAGE, (16384, 196), _TABULAR_LARGE, (65536, 784)),
        variants=tuple(SCALE_MAPS),
        directions=DIRECTIONS,
        traffic=_affine_coupling_traffic,
        quick=(
            ((256, 32), "sigmoid", "forward"), (_TABULAR, "sigmoid", "forward"), (_TABULAR, "sigmoid", "inverse"),
            (_TABULAR, "sigmoid", "forward+backward"), (_IMAGE, "sigmoid", "forward"), (_IMAGE, "tanh", "forward"),
            (_IMAGE, "clamp_atan", "forward"), (_TABULAR_LARGE, "sigmoid", "forward"),
            (_TABULAR_LARGE, "sigmoid", "forward+backward"),
        ),
        full=_affine_coupling_full,
        targets=_affine_coupling_targets,
    ),
    "act_norm": OpCases(
        shapes=((256, 64), (4096, 128), (256, 24, 14, 14), (65536, 784), (256, 12, 128, 128)),
        variants=("shift+scale",), directions=DIRECTIONS,
        traffic=lambda case: _bijection_traffic(case, parameters=2 * case.shape[1], flops=2),
        quick=(((256, 24, 14, 14), "shift+scale", "forward"), ((4096, 128), "shift+scale", "forward+backward")),
        targets=_floors,
    ),
    "channel_mix": OpCases(
        shapes=((256, 24, 14, 14),), variants=("full",), directions=DIRECTIONS,
        traffic=lambda case: _bijection_traffic(case, parameters=case.shape[1] ** 2, flops=2 * case.shape[1]),
        quick=tuple(((256, 24, 14, 14), "full", direction) for direction in DIRECTIONS[:3]),
        targets=_floors,
    ),
    # shape: [B, D] latents; the variant says how many classes
    "gaussian_class_scores": OpCases(
        shapes=((4096, 64), (4096, 196)), variants=("classes=10", "classes=100"),
        directions=("forward", "forward+backward"), traffic=_gaussian_class_scores_traffic,
        quick=(((4096, 196), "classes=10", "forward"),),
    ),
    "logit": OpCases(
        shapes=((256, 1, 28, 28),), variants=("alpha=0.05",), directions=DIRECTIONS,
        traffic=lambda case: _bijection_traffic(case, parameters=0, flops=9),
        quick=tuple(((256, 1, 28, 28), "alpha=0.05", direction) for direction in DIRECTIONS[:3]),
        targets=_floors,
    ),
    # a uint8 in, z out; flops without the noise's
    "dequantize_logit": OpCases(
        shapes=_NOISE_SHAPES, variants=("noise", "middle"), directions=("forward",),
        traffic=lambda case: ((1 + BYTES[case.dtype]) * case.elements + 4 * case.shape[0], 11 * case.elements),
        quick=((_NOISE_SHAPES[0], "noise", "forward"),),
    ),
    "uniform_noise": OpCases(
        shapes=_NOISE_SHAPES, variants=("noise",), directions=("forward",), dtypes=("float64", "float32"),
        traffic=lambda case: (BYTES[case.dtype] * case.elements + 8 * case.shape[0], case.elements),
        quick=((_NOISE_SHAPES[0], "noise", "forward"),),
    ),
    "sym_log": OpCases(
        shapes=((256, 16, 8, 8),), variants=("plain",), directions=DIRECTIONS,
        traffic=lambda case: _bijection_traffic(case, parameters=0, flops=4),
        quick=(((256, 16, 8, 8), "plain", "forward"),),
    ),
}


# The cases that the GPU figures are about: variants by op, at two sizes of several times the L2 and a small one.
_CUDA_VARIANTS = {"affine_coupling": "sigmoid", "act_norm": "shift+scale", "logit": "alpha=0.05"}
_CUDA_SHAPES = ((65536, 784), (256, 12, 128, 128), (256, 64))


def every_case() -> Iterator[Case]:
    """All that can be asked for: op x shape x variant x direction x dtype."""
    for op, entry in OPS.items():
        shapes = dict.fromkeys(entry.shapes + (_CUDA_SHAPES if op in _CUDA_VARIANTS else ()))
        for dtype, shape, variant, direction in product(entry.dtypes, shapes, entry.variants, entry.directions):
            yield Case(op, shape, variant, direction, dtype)


def quick_cases() -> list[Case]:
    """About two minutes on two cores: every regime, every direction, float32."""
    return [Case(op, *which) for op, entry in OPS.items() for which in entry.quick]


def full_cases() -> list[Case]:
    """About half an hour: the first variants on every shape, every variant on the main shapes, some in bfloat16."""
    return [case for case in every_case()
            if case.shape in OPS[case.op].shapes and case.direction != "backward" and OPS[case.op].full(case)]


def cuda_cases() -> list[Case]:
    """The cases of the GPU figures, and the quick ones of the other ops."""
    figures = [Case(op, shape, variant, direction, dtype) for op, variant in _CUDA_VARIANTS.items()
               for dtype in ("float32", "bfloat16") for shape in _CUDA_SHAPES
               for direction in ("forward", "inverse", "backward")]
    return figures + [case for case in quick_cases() if case.op not in _CUDA_VARIANTS]


def cuda_targets(case: Case, eager_bytes: int) -> dict[str, float]:
    """The GPU figures: {provider: how many times its speed}, "copy" a copy of the case's bytes. `eager_bytes` is what
    eager moves, so that its share of these is the speed that the saved traffic alone is worth."""
    if case.op not in _CUDA_VARIANTS:
        return {}
    memory = {"copy": 0.85, "eager": 0.85 * eager_bytes / case.bytes} if case.regime == "memory" else {}
    return {"compile": 0.97} | memory


def select(pattern: str | None = None, op: str | None = None, direction: str | None = None,
           full: bool = False, device: str = "cpu") -> list[Case]:
    """The cases that match: `pattern` is a shell pattern for names like affine_coupling/4096x64/sigmoid/forward/float32
    (a part of it will do) among every_case, else the full list, or the device's short one. Raises ValueError if none
    does."""
    short = cuda_cases if device == "cuda" else quick_cases
    cases = every_case() if pattern else full_cases() if full else short()
    chosen = [case for case in cases
              if (pattern is None or fnmatch(case.name, f"*{pattern}*")) and op in (None, case.op)
              and direction in (None, case.direction)]
    if not chosen:
        wanted = " ".join(filter(None, (pattern, op, direction)))
        raise ValueError(f"no case matches {wanted!r}, expected part of a name like {quick_cases()[0].name}")
    return chosen
