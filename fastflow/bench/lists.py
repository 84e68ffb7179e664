"""Which cases are measured: the short, the full and the GPU's list, the GPU's targets, and selection by name."""

from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import product

from fastflow.bench.cases import COVARIANCES, OPS, Case

# The cases that the GPU figures are about: variants by op, at two sizes of several times the L2 and a small one.
_CUDA_VARIANTS = {"affine_coupling": "sigmoid", "act_norm": "shift+scale", "logit": "alpha=0.05"}
_CUDA_SHAPES = ((65536, 784), (256, 12, 128, 128), (256, 64))
# Further figures by case: times the speed of each provider, "copy" and "matrix" as `cuda_targets` says
_CUDA_FIGURES = {
    Case("gaussian_class_marginal", (65536, 784), f"classes=10/{covariance}", "forward+backward"):
        {"copy": 0.45 if covariance == "class_diag" else 0.70, "mixture": 20.0, "gemm-compile": 1.5}
    for covariance in COVARIANCES
} | {Case("gaussian_class_marginal", (65536, 196), "classes=1000/class_diag", "forward"): {"matrix": 0.5}}


def every_case() -> Iterator[Case]:
    """All that can be asked for: op x shape x variant x direction x dtype."""
    for op, entry in OPS.items():
        shapes = dict.fromkeys(entry.shapes + (_CUDA_SHAPES if op in _CUDA_VARIANTS else ()))
        for dtype, shape, variant, direction in product(entry.dtypes, shapes, entry.variants, entry.directions):
            yield Case(op, shape, variant, direction, dtype)
    yield from _CUDA_FIGURES


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
    return figures + list(_CUDA_FIGURES) + [case for case in quick_cases() if case.op not in _CUDA_VARIANTS]


def cuda_targets(case: Case, eager_bytes: int) -> dict[str, float]:
    """The GPU figures: {provider: how many times its speed}, "copy" a copy of the case's bytes, "matrix" its flops in a
    large float32 matrix product. `eager_bytes` is what eager moves, so that its share of these is the speed that the
    saved traffic alone is worth."""
    if case.op not in _CUDA_VARIANTS:
        return _CUDA_FIGURES.get(case, {})
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
