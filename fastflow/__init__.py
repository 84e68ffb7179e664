"""Normalizing flows for semi-supervised learning, with fused CPU and CUDA kernels."""

__version__ = "0.1.0"
