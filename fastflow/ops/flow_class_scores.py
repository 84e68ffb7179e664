"""Scores of classes that are conditional flows: one flow h, conditioned on a vector of each class.

    scores[b, k] = log_prior[k] + log|det dh(z_b; c_k) / dz_b| + log base(h(z_b; c_k))

All B K pairs (row, class) go through the flow together. A `FlowSequential` of maps of the features, couplings of halves
conditioned by `ResidualMLP`s and `FactorOut`s is read as a plan and goes by `class_pairs`: what does not depend on the
class is computed once a row, and no activations are kept. Any other flow is called once with the batch repeated, row
b K + k the pair (b, k). SCNF (Atanov et al. 2019, arXiv 1905.00505, eq. 5 to 7).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops._checks import bad_shape, bad_type, check_device, check_finite, check_float
from fastflow.ops._define import under_transform
from fastflow.ops.class_pairs import class_pairs


def repeated(z: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """(z [B K, D], context [B K, E]): every row of z [B, D] with every class's context of contexts [K, E]."""
    return z.repeat_interleave(contexts.shape[0], dim=0), contexts.repeat(z.shape[0], 1)


def obstacle(flow: Callable, contexts: Tensor) -> str:
    """Why the flow is called with the batch repeated, here and now; "" where its pairs go by `class_pairs`."""
    if _backend.forced() in ("reference", "triton"):
        return f"backend {_backend.forced()!r} was asked for"
    if under_transform():
        return "a torch.func transform or forward-mode AD is active"
    served = (torch.float32,) if contexts.is_cuda else (torch.float32, torch.float64)
    if contexts.dtype not in served:
        return f"contexts has dtype {contexts.dtype} on {contexts.device}, expected {' or '.join(map(str, served))}"
    if _products(contexts) == torch.float16:
        return "autocast asks for float16, expected bfloat16"
    look = getattr(flow, "class_obstacle", None)
    return f"flow is a {type(flow).__name__}, expected a FlowSequential" if look is None else look(contexts)


def _products(contexts: Tensor) -> torch.dtype:
    """The dtype of the conditioners' products."""
    device = contexts.device.type
    if contexts.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return contexts.dtype


def flow_class_scores(z: Tensor, flow: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], contexts: Tensor,
                      base: Callable[[Tensor], Tensor], log_prior: Tensor, threshold: float | None = None) -> Tensor:
    """[B, K] log p(z, y = k) in nats, float32 (float64 for float64 z).

    z          [B, D], float64/float32
    flow       flow(z, context) -> (z_h, log_det), a conditional `Bijection`; it is read, or called once
    contexts   [K, E], K >= 1, the vector that stands for each class, finite
    base       base(z_h) -> [B K] log-density in nats
    log_prior  [K] log p(y = k); -inf for a class that cannot occur
    threshold  backward goes through the pairs with |g[b, k]| > threshold sum_k |g[b, k]| alone, g the gradient of the
               scores. 0 is exact. The gradient of a row of z is wrong by at most K threshold sum_k |g[b, k]| times the
               largest of its scores' own gradients. None: through all pairs, without synchronising the device. Where
               flow is called, and under torch.compile, always through all.

    Under autocast to bfloat16 conditioners multiply in it; state, log-determinants and densities stay float32.
    Raises TypeError or ValueError naming the argument.
    """
    op = "flow_class_scores"
    for name, value in (("z", z), ("contexts", contexts), ("log_prior", log_prior)):
        check_float(op, name, value)
    for name, value in (("flow", flow), ("base", base)):
        if not callable(value):
            raise bad_type(op, name, value, "a callable")
    if z.dim() != 2:
        raise bad_shape(op, "z", z, "[B, D]")
    if contexts.dim() != 2 or contexts.shape[0] == 0:
        raise bad_shape(op, "contexts", contexts, "[K, E] with at least one class")
    if log_prior.shape != contexts.shape[:1]:
        raise bad_shape(op, "log_prior", log_prior, tuple(contexts.shape[:1]), "to match contexts")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"{op}: threshold is {threshold}, expected None or a number of at least 0")
    check_device(op, z, contexts=contexts, log_prior=log_prior)
    check_finite(op, or_impossible="log_prior", contexts=contexts, log_prior=log_prior)
    shape = (z.shape[0], contexts.shape[0])
    if obstacle(flow, contexts) or z.dtype != contexts.dtype or z.shape[1:] != flow.shape:
        z_h, log_det = flow(*repeated(z, contexts))
        return (log_det + base(z_h)).view(shape) + log_prior
    plan = flow.class_plan(contexts, base)
    log_det, z_h = class_pairs(z, plan, _products(contexts), threshold)
    if plan.scales is None:
        log_det = log_det + base(z_h)
    return log_det.view(shape) + (log_prior + plan.own)
