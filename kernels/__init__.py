"""Triton kernels, one file an op. Installed as `fastflow.kernels`; the names here are the launchers."""

from .act_norm import act_norm_backward_cuda, act_norm_cuda
from .affine_coupling import affine_coupling_backward_cuda, affine_coupling_cuda
from .channel_mix import channel_mix_backward_cuda, channel_mix_cuda
from .dequantize_logit import dequantize_logit_cuda
from .logit import logit_backward_cuda, logit_cuda
from .sym_log import sym_log_backward_cuda, sym_log_cuda
from .uniform_noise import uniform_noise_cuda

__all__ = [
    "act_norm_backward_cuda", "act_norm_cuda", "affine_coupling_backward_cuda", "affine_coupling_cuda",
    "channel_mix_backward_cuda", "channel_mix_cuda", "dequantize_logit_cuda", "logit_backward_cuda", "logit_cuda",
    "sym_log_backward_cuda", "sym_log_cuda", "uniform_noise_cuda",
]
