"""Argument checks that every op makes at its public door. Messages name op, argument, actual, expected.

Functions called `bad_*` build the error; a hot path compares inline and calls them only to raise.
"""

import math

import torch
from torch import Tensor

from fastflow import _library

# storage dtype -> dtype of arithmetic, log-determinants and every other reduction
COMPUTE_DTYPE = {
    torch.float64: torch.float64, torch.float32: torch.float32,
    torch.bfloat16: torch.float32, torch.float16: torch.float32,
}


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of arithmetic and reductions: float64 for float64 storage, else float32."""
    return COMPUTE_DTYPE[x.dtype]


def bad_type(op: str, name: str, value: object, expected: str = "a Tensor") -> TypeError:
    """The error for a value of the wrong Python type."""
    return TypeError(f"{op}: {name} is {type(value).__name__}, expected {expected}")


def bad_dtype(op: str, name: str, value: Tensor, expected: object) -> TypeError:
    """The error for a tensor of the wrong dtype."""
    return TypeError(f"{op}: {name} has dtype {value.dtype}, expected {expected}")


def bad_shape(op: str, name: str, value: Tensor, expected: object, why: str = "") -> ValueError:
    """The error for a tensor of the wrong shape; `why` says what it must match."""
    expected = tuple(expected) if isinstance(expected, tuple) else expected
    return ValueError(f"{op}: {name} has shape {tuple(value.shape)}, expected {expected}{why and ' ' + why}")


def bad_device(op: str, name: str, value: Tensor, x: Tensor) -> ValueError:
    """The error for a tensor that is not where x is."""
    return ValueError(f"{op}: {name} is on {value.device}, expected {x.device} like x")


def check_float(op: str, name: str, value: object) -> None:
    """Raises TypeError unless value is a Tensor of a dtype that the kernels store."""
    if not isinstance(value, Tensor):
        raise bad_type(op, name, value)
    if value.dtype not in COMPUTE_DTYPE:
        raise bad_dtype(op, name, value, "float64, float32, bfloat16 or float16")


def check_dims(op: str, x: Tensor) -> None:
    """Raises ValueError unless x is [B, C, *spatial] with 2 to 5 dims."""
    if not 2 <= x.dim() <= 5:
        raise bad_shape(op, "x", x, "2 to 5 dims [B, C, *spatial]")


def check_log_det(op: str, x: Tensor, log_det: object) -> None:
    """Raises unless log_det is a running log-determinant for x: [B], float32 (float64 for float64 x), on x's device."""
    if not isinstance(log_det, Tensor):
        raise bad_type(op, "log_det", log_det)
    if log_det.shape != (x.shape[0],):
        raise bad_shape(op, "log_det", log_det, x.shape[:1], "to match the batch of x")
    if log_det.dtype != COMPUTE_DTYPE[x.dtype]:
        raise bad_dtype(op, "log_det", log_det, f"{COMPUTE_DTYPE[x.dtype]} for {x.dtype} x")
    if log_det.device != x.device:
        raise bad_device(op, "log_det", log_det, x)


def check_device(op: str, x: Tensor, **others: Tensor | None) -> None:
    """Raises ValueError unless every given tensor is on the device of x."""
    device = x.device
    for name, value in others.items():
        if value is not None and value.device != device:
            raise bad_device(op, name, value, x)


def start_log_det(op: str, x: Tensor, log_det: Tensor | None) -> Tensor:
    """The running log-determinant to add to: the given one, checked, or zeros [B]."""
    if log_det is None:
        return x.new_zeros(x.shape[0], dtype=COMPUTE_DTYPE[x.dtype])
    check_log_det(op, x, log_det)
    return log_det


def is_readable(x: Tensor) -> bool:
    """Whether looking at x's values costs no device synchronisation and breaks no graph: then they are checked too."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not _is_wrapped(x)


def _is_wrapped(x: Tensor) -> bool:
    return type(x) not in (Tensor, torch.nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(x)


def check_finite(op: str, or_impossible: str = "", **values: Tensor) -> None:
    """Raises ValueError for a NaN or an infinity, where looking costs nothing; the value of the name `or_impossible`,
    log-probabilities, may hold -inf. The values are on one device."""
    if not is_readable(next(iter(values.values()))):
        return
    values = {name: value for name, value in values.items() if not _is_wrapped(value)}
    if all([_is_finite(value) for value in values.values()]):
        return
    for name, value in values.items():
        bad = ~value.isfinite()
        if name == or_impossible:
            bad &= value != -torch.inf
        if bool(bad.any()):
            where = tuple(bad.nonzero()[0].tolist())
            allowed = "finite numbers or -inf" if name == or_impossible else "finite numbers"
            raise ValueError(f"{op}: {name} is {value[where].item()} at {where}, expected {allowed}")


def _is_finite(value: Tensor) -> bool:
    """Whether all its numbers are, without the cost of a call of PyTorch where the library can look at them."""
    look, bytes_each = _library.all_finite(), value.element_size()
    if look is not None and bytes_each >= 4 and value.is_contiguous():
        return look(value.data_ptr(), value.numel(), bytes_each)
    return math.isfinite(value.detach().double().sum().item())


def check_labels(op: str, name: str, labels: object, rows: int, classes: int, unlabelled: bool) -> None:
    """Raises unless labels are [rows] integers below `classes`, at least 0, or -1 where `unlabelled` allows it."""
    if not isinstance(labels, Tensor):
        raise bad_type(op, name, labels)
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise bad_dtype(op, name, labels, "an integer dtype")
    if labels.shape != (rows,):
        raise bad_shape(op, name, labels, (rows,), "one label a row")
    if is_readable(labels) and rows:
        low, high = int(labels.min()), int(labels.max())
        least = -1 if unlabelled else 0
        if low < least or high >= classes:
            wrong = low if low < least else high
            raise ValueError(f"{op}: {name} has the value {wrong}, expected {least} to {classes - 1}"
                             + (" (-1: unlabelled)" if unlabelled else ""))
