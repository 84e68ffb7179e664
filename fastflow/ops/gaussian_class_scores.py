"""Scores of classes that are diagonal Gaussians.

    scores[b, k] = log_prior[k] + sum_d log N(z[b, d]; means[k, d], exp(log_scales[k, d])^2)
                 = log_prior[k] - D / 2 log(2 pi) - sum_d ( ((z[b, d] - means[k, d]) exp(-log_scales[k, d]))^2 / 2
                                                            + log_scales[k, d] )

Differences are taken first and squared then: the expanded form z^2 - 2 z m + m^2 loses |m|^2 / scale^2 roundings.
SCNF-GMM (Atanov et al. 2019, arXiv 1905.00505), FlowGMM (Izmailov et al. 2020, arXiv 1912.13025, eq. 2).
"""

import math

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import bad_shape, check_device, check_float, compute_dtype
from fastflow.ops._define import Op, under_transform


def reference(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor) -> Tensor:
    """The definition, in differentiable PyTorch. z [B, D], means and log_scales [K, D], log_prior [K], one dtype."""
    distance = (z[:, None] - means) * torch.exp(-log_scales)
    energy = (0.5 * distance * distance + log_scales).sum(-1)
    return log_prior - energy - 0.5 * math.log(2 * math.pi) * z.shape[1]


def _fallback(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor) -> Tensor:
    return reference(z, means, log_scales, log_prior).contiguous()


def _fake(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor) -> Tensor:
    return z.new_empty(z.shape[0], means.shape[0])


_scores = Op(
    "gaussian_class_scores",
    "(Tensor z, Tensor means, Tensor log_scales, Tensor log_prior) -> Tensor",
    reference=reference, fallback=_fallback, fake=_fake, on_cuda="cuda",
)


class _GaussianClassScores(torch.autograd.Function):
    """The gradient of score k is r / s with respect to the mean, -r / s to z and r^2 - 1 to log s, r = (z - m) / s."""

    @staticmethod
    def forward(ctx, z, means, log_scales, log_prior, backend):
        ctx.save_for_backward(z, means, log_scales)
        return _scores.kernel(backend, z.device.type)(z, means, log_scales, log_prior)

    @staticmethod
    def backward(ctx, grad):
        z, means, log_scales = ctx.saved_tensors
        inverse_scale = torch.exp(-log_scales)
        distance = (z[:, None] - means) * inverse_scale
        pull = grad[..., None] * distance * inverse_scale
        grad_log_scales = (grad[..., None] * (distance * distance - 1)).sum(0) if ctx.needs_input_grad[2] else None
        return -pull.sum(1), pull.sum(0), grad_log_scales, grad.sum(0), None


def gaussian_class_scores(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor) -> Tensor:
    """[B, K] log p(z, y = k) in nats of K diagonal Gaussians, float32 (float64 for float64 z).

    z           [B, D], float64/float32/bfloat16/float16
    means       [K, D], K >= 1
    log_scales  log standard deviations: [K, D], or [1, D] shared by the classes, [K, 1] isotropic, [1, 1] both
    log_prior   [K] log p(y = k); -inf for a class that cannot occur

    Raises TypeError or ValueError naming the argument; RuntimeError if a forced backend cannot serve the call.
    """
    z, means, log_scales, log_prior = _checked(z, means, log_scales, log_prior)
    backend = _backend.forced()
    if backend == "reference" or under_transform():
        return reference(z, means, log_scales, log_prior)
    needs_grad = any(value.requires_grad for value in (z, means, log_scales, log_prior))
    if needs_grad and torch.is_grad_enabled():
        return _GaussianClassScores.apply(z, means, log_scales, log_prior, backend)
    return _scores.kernel(backend, z.device.type)(z, means, log_scales, log_prior)


def _checked(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor) -> tuple[Tensor, ...]:
    """The arguments as the schema wants them: one dtype, log_scales [K, D]."""
    op = "gaussian_class_scores"
    for name, value in (("z", z), ("means", means), ("log_scales", log_scales), ("log_prior", log_prior)):
        check_float(op, name, value)
    if z.dim() != 2:
        raise bad_shape(op, "z", z, "[B, D]")
    if means.dim() != 2 or means.shape[0] == 0 or means.shape[1] != z.shape[1]:
        raise bad_shape(op, "means", means, f"(K, {z.shape[1]}) with K >= 1", "to match z")
    classes, features = means.shape
    if log_scales.dim() != 2 or log_scales.shape[0] not in (1, classes) or log_scales.shape[1] not in (1, features):
        raise bad_shape(op, "log_scales", log_scales, f"({classes} or 1, {features} or 1)", "to match means")
    if log_prior.shape != (classes,):
        raise bad_shape(op, "log_prior", log_prior, (classes,), "to match means")
    check_device(op, z, means=means, log_scales=log_scales, log_prior=log_prior)
    dtype = compute_dtype(z)
    return z.to(dtype), means.to(dtype), log_scales.to(dtype).expand(classes, features), log_prior.to(dtype)
