"""Argument checks that every op makes at its public door. Messages name op, argument, actual, expected."""

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of arithmetic and reductions: float64 for float64 storage, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_tensor(op: str, name: str, value: object) -> None:
    """Raises TypeError unless value is a Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is {type(value).__name__}, expected a Tensor")


def check_float(op: str, name: str, value: object) -> None:
    """Raises TypeError unless value is a Tensor of a dtype that the kernels store."""
    check_tensor(op, name, value)
    if value.dtype not in DTYPES:
        raise TypeError(f"{op}: {name} has dtype {value.dtype}, expected float64, float32, bfloat16 or float16")


def check_dims(op: str, x: Tensor) -> None:
    """Raises ValueError unless x is [B, C, *spatial] with 2 to 5 dims."""
    if not 2 <= x.dim() <= 5:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, expected 2 to 5 dims [B, C, *spatial]")


def check_shape(op: str, name: str, value: Tensor, expected: tuple[int, ...], why: str = "") -> None:
    """Raises ValueError unless value has the expected shape; `why` says what it must match."""
    if value.shape != expected:
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, expected {tuple(expected)}{why and ' ' + why}")


def check_log_det(op: str, x: Tensor, log_det: object) -> None:
    """Raises unless log_det is a running log-determinant for x: [B], float32 (float64 for float64 x)."""
    check_tensor(op, "log_det", log_det)
    check_shape(op, "log_det", log_det, x.shape[:1], "to match the batch of x")
    if log_det.dtype != compute_dtype(x):
        raise TypeError(f"{op}: log_det has dtype {log_det.dtype}, expected {compute_dtype(x)} for {x.dtype} x")


def check_device(op: str, x: Tensor, **others: Tensor | None) -> None:
    """Raises ValueError unless every given tensor is on the device of x."""
    for name, value in others.items():
        if value is not None and value.device != x.device:
            raise ValueError(f"{op}: {name} is on {value.device}, expected {x.device} like x")
