"""Normalizing flows for semi-supervised learning, with fused CPU and CUDA kernels."""

from fastflow import models, nn, ops
from fastflow._backend import backend, backends
from fastflow.fusion import fuse, supported_layers, unfuse

__version__ = "0.1.0"
__all__ = ["backend", "backends", "fuse", "models", "nn", "ops", "supported_layers", "unfuse"]
