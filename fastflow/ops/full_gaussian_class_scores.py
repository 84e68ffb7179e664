"""Scores of classes that are Gaussians of full covariance L L^T, given by Cholesky factors L.

    scores[b, k] = log_prior[k] + log N(z[b]; means[k], L[k] L[k]^T)
                 = log_prior[k] - D / 2 log(2 pi) - sum_d log L[k, d, d] - |u|^2 / 2,    L[k] u = z[b] - means[k]

Differences are taken before the triangular system is solved, as in `gaussian_class_scores`. The work, B K D^2, is that
of the vendor's triangular solver; a few classes at a time, so that [B, K, D] never exists in memory.
SCNF-GMM with full covariances (Atanov et al. 2019, arXiv 1905.00505, code).
"""

import math

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import bad_shape, check_device, check_finite, check_float, compute_dtype, is_readable
from fastflow.ops._define import under_transform

_BLOCK = 2**22  # elements of [classes, D, B] that are held at a time


def reference(z: Tensor, means: Tensor, scale_tril: Tensor, log_prior: Tensor) -> Tensor:
    """The definition, in differentiable PyTorch; z [B, D], means [K, D], scale_tril [K or 1, D, D], log_prior [K]."""
    whitened = _whiten(z, means, scale_tril)
    return log_prior - 0.5 * whitened.square().sum(1).T - _log_normaliser(scale_tril)


def _whiten(z: Tensor, means: Tensor, scale_tril: Tensor) -> Tensor:
    """u [K, D, B]."""
    difference = (z - means[:, None]).mT
    return torch.linalg.solve_triangular(scale_tril.expand(len(means), -1, -1), difference, upper=False)


def _log_normaliser(scale_tril: Tensor) -> Tensor:
    diagonal = scale_tril.diagonal(dim1=1, dim2=2)
    return diagonal.log().sum(1) + 0.5 * math.log(2 * math.pi) * diagonal.shape[1]


def _blocks(z: Tensor, means: Tensor, scale_tril: Tensor) -> list[tuple[Tensor, Tensor, slice]]:
    """(means, factors, classes) of a few classes after the other."""
    size = max(1, _BLOCK // max(1, z.numel()))
    every = [slice(first, first + size) for first in range(0, len(means), size)]
    return [(means[each], scale_tril if len(scale_tril) == 1 else scale_tril[each], each) for each in every]


class _FullGaussianClassScores(torch.autograd.Function):
    """Keeps what it was given; backward solves again."""

    @staticmethod
    def forward(ctx, z, means, scale_tril, log_prior):
        ctx.save_for_backward(z, means, scale_tril)
        energy = [0.5 * _whiten(z, *block).square().sum(1) for *block, _ in _blocks(z, means, scale_tril)]
        return (log_prior - _log_normaliser(scale_tril)) - torch.cat(energy).T

    @staticmethod
    def backward(ctx, grad):
        z, means, scale_tril = ctx.saved_tensors
        grad_z, grad_means, grad_tril = torch.zeros_like(z), [], []
        for some_means, factors, classes in _blocks(z, means, scale_tril):
            whitened = _whiten(z, some_means, factors)
            weighted = grad.T[classes, None] * whitened
            upper = factors.mT.expand(len(some_means), -1, -1)
            pull = torch.linalg.solve_triangular(upper, weighted, upper=True)
            grad_z = grad_z - pull.sum(0).T
            grad_means.append(pull.sum(2))
            grad_tril.append((pull @ whitened.mT).sum_to_size(factors.shape).tril())
        grad_tril = torch.stack(grad_tril).sum(0) if len(scale_tril) == 1 else torch.cat(grad_tril)
        of_classes = grad.sum(0)
        total = of_classes.sum(0, keepdim=True) if len(scale_tril) == 1 else of_classes
        grad_tril = grad_tril - torch.diag_embed(total[:, None] / scale_tril.diagonal(dim1=1, dim2=2))
        return grad_z, torch.cat(grad_means), grad_tril, of_classes


def full_gaussian_class_scores(z: Tensor, means: Tensor, scale_tril: Tensor, log_prior: Tensor) -> Tensor:
    """[B, K] log p(z, y = k) in nats of K Gaussians of full covariance, float32 (float64 for float64 z).

    z           [B, D], float64/float32/bfloat16/float16, any strides
    means       [K, D], K >= 1, finite
    scale_tril  Cholesky factors of the covariances [K, D, D], or [1, D, D] shared by the classes: finite, of positive
                diagonal; only the lower triangle is read
    log_prior   [K] log p(y = k); -inf for a class that cannot occur

    `class_marginal` and `class_cross_entropy` reduce the scores over the classes. Raises TypeError or ValueError naming
    the argument, for values only where looking costs nothing (on CPU); RuntimeError where a backend other than the
    reference is forced: there are no kernels, the vendor's serve.
    """
    given = _checked(z, means, scale_tril, log_prior)
    backend = _backend.forced()
    if backend not in (None, "reference"):
        raise _backend.Unserved(f"full_gaussian_class_scores: backend {backend!r} was asked for and has no kernel of "
                                'this op, use backend("auto")')
    if backend == "reference" or under_transform():
        return reference(*given)
    return _FullGaussianClassScores.apply(*given)


def _checked(z: Tensor, means: Tensor, scale_tril: Tensor, log_prior: Tensor) -> tuple[Tensor, ...]:
    op = "full_gaussian_class_scores"
    for name, value in (("z", z), ("means", means), ("scale_tril", scale_tril), ("log_prior", log_prior)):
        check_float(op, name, value)
    if z.dim() != 2:
        raise bad_shape(op, "z", z, "[B, D]")
    features = z.shape[1]
    if means.dim() != 2 or means.shape[0] == 0 or means.shape[1] != features:
        raise bad_shape(op, "means", means, f"(K, {features}) with K >= 1", "to match z")
    classes = means.shape[0]
    if scale_tril.shape not in ((1, features, features), (classes, features, features)):
        raise bad_shape(op, "scale_tril", scale_tril, f"({classes} or 1, {features}, {features})", "to match means")
    if log_prior.shape != (classes,):
        raise bad_shape(op, "log_prior", log_prior, (classes,), "to match means")
    check_device(op, z, means=means, scale_tril=scale_tril, log_prior=log_prior)
    check_finite(op, or_impossible="log_prior", means=means, scale_tril=scale_tril, log_prior=log_prior)
    if is_readable(scale_tril) and not bool((scale_tril.diagonal(dim1=1, dim2=2) > 0).all()):
        least = float(scale_tril.diagonal(dim1=1, dim2=2).min())
        raise ValueError(f"{op}: scale_tril has {least} on its diagonal, expected positive scales")
    dtype = compute_dtype(z)
    return z.to(dtype), means.to(dtype), scale_tril.to(dtype), log_prior.to(dtype)
