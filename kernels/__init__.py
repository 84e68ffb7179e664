"""Triton kernels, one file an op. Installed as `fastflow.kernels`."""
