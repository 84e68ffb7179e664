"""log p(x) of Gaussians with diagonal covariances, mixed or chosen by labels: no [B, K, D] is stored.

Parameters are not looked at, unlike at the public door of `gaussian_class_marginal`: a NaN gives NaN, as in the
libraries.
"""

import torch
from torch import Tensor

from fastflow.ops._checks import COMPUTE_DTYPE, bad_shape
from fastflow.ops.gaussian_class_scores import compute


def log_prob(x: Tensor, mean: Tensor, log_scale: Tensor, log_weights: Tensor, labels: Tensor | None = None) -> Tensor:
    """[B] nats, in the widest dtype of the first four arguments, float32 at least.

    x            [B, D]
    mean         [K, D]
    log_scale    log standard deviations, [K or 1, D or 1]
    log_weights  [K], of the mixture's weights, which sum to 1
    labels       None: log p(x); [B] of 0 to K - 1, trusted: log p(x, label)

    Raises ValueError naming the argument that has another shape.
    """
    op, (classes, features) = "mixture", mean.shape
    if x.dim() != 2 or x.shape[1] != features:
        raise bad_shape(op, "x", x, f"[B, {features}]", "to match mean")
    if log_scale.dim() != 2 or log_scale.shape[0] not in (1, classes) or log_scale.shape[1] not in (1, features):
        raise bad_shape(op, "log_scale", log_scale, f"({classes} or 1, {features} or 1)", "to match mean")
    if log_weights.shape != (classes,):
        raise bad_shape(op, "log_weights", log_weights, (classes,), "to match mean")
    given, dtype = (x, mean, log_scale, log_weights), x.dtype
    for each in given[1:]:
        if each.dtype != dtype:
            dtype = torch.promote_types(dtype, each.dtype)
    dtype = COMPUTE_DTYPE[dtype]
    marginal, picked, _ = compute(*(each if each.dtype == dtype else each.to(dtype) for each in given), labels, None,
                                  with_scores=False)
    return marginal if labels is None else picked
