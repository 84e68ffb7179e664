"""The public door of the library's functions: one op a file, each defined by its reference in plain PyTorch."""

from fastflow.ops.act_norm import act_norm, act_norm_statistics
from fastflow.ops.affine_coupling import ScaleMap, affine_coupling
from fastflow.ops.channel_mix import PLU, channel_mix, plu
from fastflow.ops.dequantize import dequantize, quantize
from fastflow.ops.factor_out import factor_out, factor_out_inverse
from fastflow.ops.logit import logit
from fastflow.ops.squeeze import squeeze
from fastflow.ops.uniform_noise import uniform_noise

__all__ = [
    "PLU", "ScaleMap", "act_norm", "act_norm_statistics", "affine_coupling", "channel_mix", "dequantize", "factor_out",
    "factor_out_inverse", "logit", "plu", "quantize", "squeeze", "uniform_noise",
]
