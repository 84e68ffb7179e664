"""Triton kernels, one file an op. Installed as `fastflow.kernels`; the names here are the launchers."""

from .act_norm import act_norm_backward_cuda, act_norm_cuda
from .affine_coupling import affine_coupling_backward_cuda, affine_coupling_cuda
from .logit import logit_backward_cuda, logit_cuda

__all__ = [
    "act_norm_backward_cuda", "act_norm_cuda", "affine_coupling_backward_cuda", "affine_coupling_cuda",
    "logit_backward_cuda", "logit_cuda",
]
