"""The public door of the library's functions: one op a file, each defined by its reference in plain PyTorch."""

from fastflow.ops.act_norm import act_norm, act_norm_statistics
from fastflow.ops.affine_coupling import affine_coupling, affine_coupling_packed
from fastflow.ops.binarize import binarize
from fastflow.ops.channel_map import PLU, QR, Householder, plu
from fastflow.ops.channel_mix import channel_mix
from fastflow.ops.class_marginal import class_cross_entropy, class_marginal
from fastflow.ops.dequantize import dequantize, quantize
from fastflow.ops.dequantize_logit import dequantize_logit
from fastflow.ops.elementwise_affine import elementwise_affine
from fastflow.ops.factor_out import factor_out, factor_out_inverse
from fastflow.ops.flow_class_marginal import flow_class_marginal
from fastflow.ops.flow_class_scores import flow_class_scores
from fastflow.ops.full_gaussian_class_scores import full_gaussian_class_scores
from fastflow.ops.gaussian_class_marginal import (
    gaussian_class_cross_entropy,
    gaussian_class_marginal,
    gaussian_class_posterior,
)
from fastflow.ops.gaussian_class_scores import gaussian_class_scores
from fastflow.ops.logit import logit
from fastflow.ops.mlp import mlp
from fastflow.ops.permute import permute
from fastflow.ops.scale_map import ScaleMap
from fastflow.ops.squeeze import squeeze
from fastflow.ops.sym_log import sym_log
from fastflow.ops.uniform_noise import uniform_noise

__all__ = [
    "PLU", "QR", "Householder", "ScaleMap", "act_norm", "act_norm_statistics", "affine_coupling",
    "affine_coupling_packed", "binarize", "channel_mix", "class_cross_entropy", "class_marginal", "dequantize",
    "dequantize_logit", "elementwise_affine", "factor_out", "factor_out_inverse", "flow_class_marginal",
    "flow_class_scores", "full_gaussian_class_scores", "gaussian_class_cross_entropy", "gaussian_class_marginal",
    "gaussian_class_posterior", "gaussian_class_scores", "logit", "mlp", "permute", "plu", "quantize", "squeeze",
    "sym_log", "uniform_noise",
]
