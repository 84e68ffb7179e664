"""Classes that are diagonal Gaussians, as each provider scores them: all scores, or their logsumexp over the classes.

`eager` is the stable broadcast: differences, then squares. `gemm` expands the square, (z - m)^2 = z^2 - 2 z m + m^2,
into matrix products, which lose |m|^2 / scale^2 roundings. `mixture` is torch.distributions' MixtureSameFamily, its
checks of values off. `keops` is pyKeOps (the extra `bench`), which compiles each formula at its first use, for seconds.
"""

from collections.abc import Callable
from math import log, pi

import torch
import torch.nn.functional as F
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fastflow import ops
from fastflow.bench.cases import BYTES, Case, classes, scales_shape
from fastflow.bench.inputs import Inputs, OpProviders
from fastflow.bench.inputs import Normal as NormalTensors

BROADCAST_LIMIT = 2**31
_BROADCASTING = ("eager", "mixture")


def inputs(case: Case, provider: str, device: str) -> Inputs:
    """z, means, log_scales of the covariance's shape, log_prior."""
    normal, (rows, features), count = NormalTensors(case, device), case.shape, classes(case)
    z, means, log_scales = normal(rows, features), normal(count, features), 0.1 * normal(*scales_shape(case))
    log_prior = torch.full((count,), -log(count), device=device, dtype=z.dtype)
    given = (z, means, log_scales, log_prior)
    result = (rows, count) if case.op == "gaussian_class_scores" else (rows,)
    return Inputs(given, leaves=given, grads=(normal.reduced(*result),))


def too_big(provider: str, case: Case) -> str:
    """Why a provider that holds tensors of [B, K, D] in memory is not run; empty where one of them is within 2 GiB."""
    size = case.elements * classes(case) * BYTES[case.dtype]
    # The compiler fuses the forward's; the backward's sums over rows and over classes both need it.
    broadcasts = provider in _BROADCASTING or (provider == "compile" and case.trains)
    if not broadcasts or size <= BROADCAST_LIMIT:
        return ""
    return f"[B, K, D] would take {size / 2**30:.1f} GiB, of which several, more than the limit of 2 GiB each"


def _scores(case: Case, given: Inputs) -> Callable:
    return lambda *arguments: (ops.gaussian_class_scores(*arguments),)


def _marginal(case: Case, given: Inputs) -> Callable:
    return lambda *arguments: (ops.gaussian_class_marginal(*arguments),)


def _scores_eager(case: Case, given: Inputs) -> Callable:
    def call(z, means, log_scales, log_prior):
        gaussians = Normal(means, log_scales.exp(), validate_args=False)
        return (log_prior + gaussians.log_prob(z[:, None]).sum(-1),)

    return call


def _marginal_eager(case: Case, given: Inputs) -> Callable:
    def call(z, means, log_scales, log_prior):
        energy = 0.5 * ((z[:, None] - means) * torch.exp(-log_scales)).square().sum(-1)
        scores = log_prior - energy - log_scales.expand_as(means).sum(-1) - 0.5 * log(2 * pi) * z.shape[1]
        return (scores.logsumexp(1),)

    return call


def _marginal_gemm(case: Case, given: Inputs) -> Callable:
    def call(z, means, log_scales, log_prior):
        precision = torch.exp(-2 * log_scales)
        constant = log_prior - (0.5 * means.square() * precision + log_scales).sum(1) - 0.5 * log(2 * pi) * z.shape[1]
        if log_scales.shape[1] == 1:  # isotropic: one sum a row serves every class
            squares = z.square().sum(1, keepdim=True) * precision.T
        else:
            squares = F.linear(z.square(), precision)
        return ((F.linear(z, means * precision, constant) - 0.5 * squares).logsumexp(1),)

    return call


def _marginal_mixture(case: Case, given: Inputs) -> Callable:
    def call(z, means, log_scales, log_prior):
        gaussians = Normal(means, log_scales.exp().expand_as(means), validate_args=False)
        mixture = MixtureSameFamily(Categorical(logits=log_prior, validate_args=False),
                                    Independent(gaussians, 1, validate_args=False), validate_args=False)
        return (mixture.log_prob(z),)

    return call


def _marginal_keops(case: Case, given: Inputs) -> Callable:
    try:
        from pykeops.torch import LazyTensor
    except ImportError:
        raise ValueError("pykeops is not installed; pip install 'fastflow[bench]' brings it") from None

    def call(z, means, log_scales, log_prior):
        inverse_scales = torch.exp(-log_scales).expand_as(means).contiguous()
        constant = log_prior - log_scales.expand_as(means).sum(1) - 0.5 * log(2 * pi) * z.shape[1]
        rows, centers, inverse = LazyTensor(z[:, None]), LazyTensor(means[None]), LazyTensor(inverse_scales[None])
        scores = LazyTensor(constant[None, :, None]) - 0.5 * ((rows - centers) * inverse).square().sum(-1)
        return (scores.logsumexp(dim=1)[:, 0],)

    return call


PROVIDERS = {
    "gaussian_class_scores": OpProviders(inputs, {"fastflow": _scores, "eager": _scores_eager}, refuses=too_big),
    "gaussian_class_marginal": OpProviders(inputs, {
        "fastflow": _marginal, "eager": _marginal_eager, "gemm": _marginal_gemm, "mixture": _marginal_mixture,
        "keops": _marginal_keops,
    }, refuses=too_big),
}
