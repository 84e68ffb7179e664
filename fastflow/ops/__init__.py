"""The public door of the library's functions: one op a file, each defined by its reference in plain PyTorch."""

from fastflow.ops.affine_coupling import ScaleMap, affine_coupling

__all__ = ["ScaleMap", "affine_coupling"]
