"""What is measured, as data: ops, shapes, directions, minimum traffic, targets. Which of it, when: `lists.py`; by whom:
`providers.py`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    """Everything about one op that a measurement needs to know. `entry`: the dispatcher's name where it is another."""

    shapes: tuple[tuple[int, ...], ...]
    variants: tuple[str, ...]
    directions: tuple[str, ...]
    traffic: Callable[[Case], tuple[int, int]]
    quick: tuple[tuple[tuple[int, ...], str, str], ...]
    full: Callable[[Case], bool] = lambda case: case.dtype == "float32"
    targets: Callable[[Case], dict[str, float]] = lambda case: {}
    dtypes: tuple[str, ...] = tuple(BYTES)
    entry: str = ""


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
    "inverse_sigmoid": {"bias": 2.0},
}
SOFT_CLAMPS = ("clamp_atan", "clamp_tanh", "clamp_sigmoid", "soft_clip")

# flops of (c, log c) for one element, and of the slope d log c / ds
_SCALE_FLOPS = {
    "additive": (0, 0), "exp": (1, 0), "sigmoid": (6, 5), "softplus": (5, 5), "tanh": (3, 4), "clamp_atan": (3, 3),
    "clamp_tanh": (3, 3), "clamp_sigmoid": (4, 4), "soft_clip": (4, 4),
    "inverse_sigmoid": (4, 4),
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
    return int(case.variant.partition("/")[0].removeprefix("classes="))


def scales_shape(case: Case) -> tuple[int, int]:
    """Of the classes' standard deviations, by the covariance that the variant names, one for each class and feature
    where it names none."""
    count, features = classes(case), case.shape[1]
    shapes = {"isotropic": (count, 1), "shared_diag": (1, features)}
    return shapes.get(case.variant.partition("/")[2], (count, features))


def _gaussian_traffic(case: Case) -> tuple[int, int]:
    """z [B, D] and the class parameters in, scores [B, K] or the marginal [B] out; 4 flops for each row, class and
    feature. Backward: all that (with the marginal) and the gradient of the result in, the gradients of the rest out."""
    (rows, features), width, count = case.shape, BYTES[case.dtype], classes(case)
    read, marginal = rows * features + count * (features + 1) + prod(scales_shape(case)), "marginal" in case.op
    written, flops = rows * (1 if marginal else count), 4 * rows * count * features
    if case.direction == "forward+backward":
        return width * (3 * read + (3 if marginal else 2) * written), 3 * flops
    return width * (read + written), flops


def _gaussian_marginal_targets(case: Case) -> dict[str, float]:
    """Issue figures on two cores, of a diagonal for each class."""
    if not case.variant.endswith("/class_diag"):
        return {}
    if case.direction == "forward+backward":
        return {"compile": 1.5, "mixture": 30.0}
    return {"compile": 1.9, "gemm-compile": 1.15, "mixture": 100.0, "keops": 15.0}


COVARIANCES = ("class_diag", "shared_diag", "isotropic")
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
        directions=("forward", "forward+backward"), traffic=_gaussian_traffic,
        quick=(((4096, 196), "classes=10", "forward"),),
    ),
    # the same; the variant also says what the standard deviations depend on
    "gaussian_class_marginal": OpCases(
        shapes=((4096, 64), (4096, 196), (4096, 784)),
        variants=tuple(f"classes={count}/{covariance}" for count in (10, 100, 1000) for covariance in COVARIANCES),
        directions=("forward", "forward+backward"), traffic=_gaussian_traffic,
        quick=(
            ((4096, 196), "classes=10/class_diag", "forward"), ((4096, 64), "classes=100/class_diag", "forward"),
            ((4096, 196), "classes=10/class_diag", "forward+backward"),
            ((4096, 196), "classes=1000/class_diag", "forward"),
        ),
        full=lambda case: case.dtype == "float32" and case.variant.endswith("/class_diag"),
        targets=_gaussian_marginal_targets, dtypes=("float64", "float32"), entry="gaussian_class_scores",
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
