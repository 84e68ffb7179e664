"""Scores of classes that are diagonal Gaussians, and what is summed over the classes, in one pass over z.

    scores[b, k] = log_prior[k] + sum_d log N(z[b, d]; means[k, d], exp(log_scales[k, d])^2)
                 = log_prior[k] - D / 2 log(2 pi) - sum_d ( ((z[b, d] - means[k, d]) exp(-log_scales[k, d]))^2 / 2
                                                            + log_scales[k, d] )
    marginal[b]  = logsumexp_k scores[b, k]
    picked[b]    = scores[b, labels[b]] where labels[b] >= 0, else sum_k weights[b, k] scores[b, k], without weights 0

[B, K, D] never exists in memory, and [B, K] only where it is asked for, or in training is at most a sixteenth of z.
Differences are taken first and squared then: the expanded form z^2 - 2 z m + m^2 loses |m|^2 / scale^2 roundings.
SCNF-GMM (Atanov et al. 2019, arXiv 1905.00505), FlowGMM (Izmailov et al. 2020, arXiv 1912.13025, eq. 2).
"""

import math

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import bad_shape, check_device, check_finite, check_float, compute_dtype
from fastflow.ops._define import Op, under_transform

_BLOCK = 2**24  # elements of [rows, K, D] that the fallback holds at a time
_FEW = 16  # features for each class from which on keeping the scores is cheap


def reference(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor, labels: Tensor | None,
              weights: Tensor | None, with_scores: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in differentiable PyTorch: (marginal, picked, scores), scores [0] unless asked for. z of any
    storage dtype, the others of its compute dtype, labels int64."""
    distance = (z.to(compute_dtype(z))[:, None] - means) * torch.exp(-log_scales)
    scores = _scores(distance, log_scales, log_prior)
    return scores.logsumexp(1), _picked(scores, labels, weights), scores if with_scores else scores.new_empty(0)


def _scores(distance: Tensor, log_scales: Tensor, log_prior: Tensor) -> Tensor:
    energy = (0.5 * distance * distance + log_scales).sum(-1)
    return log_prior - energy - 0.5 * math.log(2 * math.pi) * distance.shape[2]


def _picked(scores: Tensor, labels: Tensor | None, weights: Tensor | None) -> Tensor:
    picked = scores.new_zeros(scores.shape[0])
    if weights is not None:  # a class of weight 0 contributes 0 even where its score is -inf
        picked = (weights * scores.masked_fill((weights == 0) & (scores == -torch.inf), 0.0)).sum(1)
    if labels is not None:
        joint = scores.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        picked = torch.where(labels >= 0, joint, picked)
    return picked


def backward_reference(
    z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor, labels: Tensor | None, weights: Tensor | None,
    marginal: Tensor, scores: Tensor | None, grad_marginal: Tensor | None, grad_picked: Tensor | None,
    grad_scores: Tensor | None, with_z: bool, with_parameters: bool, with_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, means, log_scales, log_prior and weights, [0] for those not asked for; scores None: not kept.

    With r = (z - m) / s, score k moves by r / s for its mean, by -r / s for z and by r^2 - 1 for log s.
    """
    v = z.to(compute_dtype(z))
    inverse_scale = torch.exp(-log_scales)
    distance = (v[:, None] - means) * inverse_scale
    scores = _scores(distance, log_scales, log_prior) if scores is None else scores
    chosen = _chosen(scores, labels, weights)
    grad = torch.zeros_like(scores) if grad_scores is None else grad_scores
    if grad_marginal is not None:
        # at most 1, also where scores are so large that another order of summation moved them
        posterior = torch.exp((scores - marginal[:, None]).clamp(max=0)).masked_fill(scores == -torch.inf, 0.0)
        grad = grad + grad_marginal[:, None] * posterior
    if grad_picked is not None:
        grad = grad + grad_picked[:, None] * chosen
    none = v.new_empty(0)
    grad_z = grad_means = grad_log_scales = grad_log_prior = grad_weights = none
    pull = grad[..., None] * distance * inverse_scale
    if with_z:
        grad_z = -pull.sum(1).to(z.dtype)
    if with_parameters:
        grad_means, grad_log_prior = pull.sum(0), grad.sum(0)
        grad_log_scales = (grad[..., None] * (distance * distance - 1)).sum(0).sum_to_size(log_scales.shape)
    if with_weights:
        free = torch.ones_like(marginal, dtype=torch.bool) if labels is None else labels < 0
        # of a class that weighs nothing and cannot occur, the gradient is that of its contribution: 0
        moved = scores.masked_fill((weights == 0) & (scores == -torch.inf), 0.0)
        rate = torch.zeros_like(marginal) if grad_picked is None else grad_picked
        grad_weights = torch.where(free[:, None], rate[:, None] * moved, 0.0)
    return grad_z, grad_means, grad_log_scales, grad_log_prior, grad_weights


def _chosen(scores: Tensor, labels: Tensor | None, weights: Tensor | None) -> Tensor:
    """d picked / d scores [B, K]: the weights, and one-hot where there is a label."""
    chosen = torch.zeros_like(scores) if weights is None else weights
    if labels is None:
        return chosen
    one_hot = labels[:, None] == torch.arange(scores.shape[1], device=scores.device)
    return torch.where(labels[:, None] >= 0, one_hot.to(scores.dtype), chosen)


def _row_blocks(z: Tensor, means: Tensor) -> list[slice]:
    rows = max(1, _BLOCK // max(1, means.numel()))
    return [slice(first, first + rows) for first in range(0, z.shape[0], rows)] or [slice(0, 0)]


def _fallback(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor, labels: Tensor | None,
              weights: Tensor | None, with_scores: bool) -> tuple[Tensor, Tensor, Tensor]:
    parts = [reference(z[rows], means, log_scales, log_prior, _of(labels, rows), _of(weights, rows), with_scores)
             for rows in _row_blocks(z, means)]
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _backward_fallback(z, means, log_scales, log_prior, labels, weights, marginal, scores, grad_marginal, grad_picked,
                       grad_scores, with_z, with_parameters, with_weights):
    parts = [
        backward_reference(z[rows], means, log_scales, log_prior, _of(labels, rows), _of(weights, rows), marginal[rows],
                           *(_of(each, rows) for each in (scores, grad_marginal, grad_picked, grad_scores)), with_z,
                           with_parameters, with_weights)
        for rows in _row_blocks(z, means)
    ]
    grad_z, *of_parameters, grad_weights = zip(*parts, strict=True)
    return torch.cat(grad_z), *(torch.stack(each).sum(0) for each in of_parameters), torch.cat(grad_weights)


def _of(value: Tensor | None, rows: slice) -> Tensor | None:
    return None if value is None else value[rows]


def _fake(z, means, log_scales, log_prior, labels, weights, with_scores):
    rows = z.shape[0]
    return means.new_empty(rows), means.new_empty(rows), means.new_empty((rows, means.shape[0]) if with_scores else 0)


def _backward_fake(z, means, log_scales, log_prior, labels, weights, marginal, scores, grad_marginal, grad_picked,
                   grad_scores, with_z, with_parameters, with_weights):
    of_parameters = (means.new_empty(each.shape if with_parameters else 0) for each in (means, log_scales, log_prior))
    grad_z = z.new_empty(z.shape) if with_z else means.new_empty(0)
    return grad_z, *of_parameters, means.new_empty(weights.shape if with_weights else 0)


_GIVEN = "Tensor z, Tensor means, Tensor log_scales, Tensor log_prior, Tensor? labels, Tensor? weights"
_forward = Op(
    "gaussian_class_scores", f"({_GIVEN}, bool with_scores) -> (Tensor, Tensor, Tensor)",
    reference=reference, fallback=_fallback, fake=_fake, on_cuda="cuda",
)
_backward = Op(
    "gaussian_class_scores_backward",
    f"({_GIVEN}, Tensor marginal, Tensor? scores, Tensor? grad_marginal, Tensor? grad_picked, Tensor? grad_scores,"
    " bool with_z, bool with_parameters, bool with_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=backward_reference, fallback=_backward_fallback, fake=_backward_fake, on_cuda="cuda",
)


class _GaussianClassScores(torch.autograd.Function):
    """Saves what it was given, the marginal, and the scores where they are asked for or at most a sixteenth of z;
    otherwise backward computes them again, a tile at a time."""

    @staticmethod
    def forward(ctx, z, means, log_scales, log_prior, weights, labels, with_scores, backend):
        kernel = _forward.kernel(backend, z.device.type)
        kept = with_scores or _FEW * means.shape[0] <= means.shape[1]
        marginal, picked, scores = kernel(z, means, log_scales, log_prior, labels, weights, kept)
        ctx.set_materialize_grads(False)
        ctx.backend = backend
        ctx.save_for_backward(z, means, log_scales, log_prior, labels, weights, marginal, scores if kept else None)
        return marginal, picked, scores

    @staticmethod
    def backward(ctx, grad_marginal, grad_picked, grad_scores):
        z, *_ = saved = ctx.saved_tensors
        needs_z, *needs_parameters, needs_weights = ctx.needs_input_grad[:5]
        # Under create_graph=True the gradients themselves are differentiated: only the reference can be.
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        kernel = backward_reference if differentiable else _backward.kernel(ctx.backend, z.device.type)
        if differentiable:
            saved = (*saved[:7], None)
        grads = kernel(*saved, grad_marginal, grad_picked, grad_scores, needs_z, any(needs_parameters), needs_weights)
        asked = zip(grads, ctx.needs_input_grad, strict=False)
        return *(grad if needed else None for grad, needed in asked), None, None, None


def gaussian_class_scores(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor) -> Tensor:
    """[B, K] log p(z, y = k) in nats of K diagonal Gaussians, float32 (float64 for float64 z).

    z           [B, D], float64/float32/bfloat16/float16, any strides
    means       [K, D], K >= 1, finite
    log_scales  log standard deviations, finite: [K, D], or [1, D] shared by the classes, [K, 1] isotropic, [1, 1] both
    log_prior   [K] log p(y = k); -inf for a class that cannot occur

    Raises TypeError or ValueError naming the argument, for values only where looking costs nothing (on CPU);
    RuntimeError if a forced backend cannot serve the call.
    """
    return compute(*check("gaussian_class_scores", z, means, log_scales, log_prior), None, None, with_scores=True)[2]


def compute(z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor, labels: Tensor | None,
            weights: Tensor | None, *, with_scores: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(marginal, picked, scores) of checked arguments, differentiable."""
    backend = _backend.forced()
    if backend == "reference" or under_transform():
        return reference(z, means, log_scales, log_prior, labels, weights, with_scores)
    given = (z, means, log_scales, log_prior, weights)
    if torch.is_grad_enabled() and any([value is not None and value.requires_grad for value in given]):
        return _GaussianClassScores.apply(*given, labels, with_scores, backend)
    kernel = _forward.kernel(backend, z.device.type)
    return kernel(z, means, log_scales, log_prior, labels, weights, with_scores)


def check(op: str, z: Tensor, means: Tensor, log_scales: Tensor, log_prior: Tensor) -> tuple[Tensor, ...]:
    """The arguments as the schema wants them, the parameters in z's compute dtype."""
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
    check_finite(op, or_impossible="log_prior", means=means, log_scales=log_scales, log_prior=log_prior)
    dtype = compute_dtype(z)
    parameters = (means, log_scales, log_prior)
    return z, *(each if each.dtype == dtype else each.to(dtype) for each in parameters)
