"""zuko: which univariate transforms of a layer are served."""

import math
from functools import partial

from torch import nn

from fastflow.fusion.zuko.functional import is_known
from fastflow.ops.scale_map import ScaleMap

_ADDITIVE = ScaleMap("additive")


def scale_map(univariate: object) -> ScaleMap | None:
    """That of a layer's univariate transform; None for one that is neither affine nor additive."""
    settings = {}
    if isinstance(univariate, partial) and not univariate.args:
        univariate, settings = univariate.func, univariate.keywords
    if is_known(univariate, "f52f06531706") and set(settings) <= {"slope"}:
        slope = settings.get("slope", 1e-3)
        return ScaleMap("soft_clip", clamp=abs(math.log(slope))) if _is_slope(slope) else None
    return _ADDITIVE if is_known(univariate, "bcde9faa58c8") and not settings else None


def _is_slope(slope: object) -> bool:
    return isinstance(slope, float | int) and 0 < slope < math.inf and slope != 1


def refuses_univariate(layer: nn.Module, *, additive: bool = True) -> str:
    """Why the layer's univariate transform or the shapes of its parameters are not served; empty where they are."""
    known = scale_map(layer.univariate)
    if known is None or (known.kind == "additive" and not additive):
        return f"its univariate transform is {getattr(layer.univariate, '__name__', layer.univariate)}"
    expected = [()] if known.kind == "additive" else [(), ()]
    if [tuple(shape) for shape in layer.shapes] != expected:
        return f"its shapes are {layer.shapes}, expected {expected}"
    return ""
