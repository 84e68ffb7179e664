"""What a model is given of stored rows: flows take grey levels as they are, bounds take floats."""

from torch import Tensor, nn

from fastflow.models.class_bound import ClassBound
from fastflow.ops import binarize, dequantize


def model_input(model: nn.Module, x: Tensor, noise: Tensor | None, levels: int) -> Tensor:
    """x [B, ...] as `model` takes it; noise uniform in [0, 1), of x's shape.

    A `ClassBound` of binary pixels gets ones with the grey level's probability or, where noise is None, that
    probability; of real ones, dequantised levels. All else, and continuous data, passes.
    """
    if levels == 1 or not isinstance(model, ClassBound):
        return x
    if not model.binary:
        return dequantize(x, noise, levels=levels)
    return x.float() / (levels - 1) if noise is None else binarize(x, noise, levels=levels)
