"""Triton kernels, one file an op. Installed as `fastflow.kernels`; the names here are the launchers."""

from .affine_coupling import affine_coupling_backward_cuda, affine_coupling_cuda
from .logit import logit_backward_cuda, logit_cuda
from .sym_log import sym_log_backward_cuda, sym_log_cuda

__all__ = ["affine_coupling_backward_cuda", "affine_coupling_cuda", "logit_backward_cuda", "logit_cuda",
           "sym_log_backward_cuda", "sym_log_cuda"]
