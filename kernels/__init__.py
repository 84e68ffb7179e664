"""Triton kernels, one file an op. Installed as `fastflow.kernels`; the names here are the launchers."""

from .affine_coupling import affine_coupling_backward_cuda, affine_coupling_cuda
from .channel_mix import channel_mix_backward_cuda, channel_mix_cuda
from .logit import logit_backward_cuda, logit_cuda

__all__ = [
    "affine_coupling_backward_cuda", "affine_coupling_cuda", "channel_mix_backward_cuda", "channel_mix_cuda",
    "logit_backward_cuda", "logit_cuda",
]
