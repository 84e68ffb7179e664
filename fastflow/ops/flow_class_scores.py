"""Scores of classes that are conditional flows: one flow h, conditioned on a vector of each class.

    scores[b, k] = log_prior[k] + log|det dh(z_b; c_k) / dz_b| + log base(h(z_b; c_k))

All B K pairs (row, class) go through the flow together, so that what depends on neither is computed once: the
determinants of the channel mixes, in float64. Row b K + k is the pair (b, k). SCNF (Atanov et al. 2019, arXiv
1905.00505, eq. 5 to 7).
"""

from collections.abc import Callable

from torch import Tensor

from fastflow.ops._checks import bad_shape, bad_type, check_device, check_float


def class_pairs(z: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """(z [B K, D], context [B K, E]): every row of z [B, D] with every class's context of contexts [K, E]."""
    return z.repeat_interleave(contexts.shape[0], dim=0), contexts.repeat(z.shape[0], 1)


def flow_class_scores(z: Tensor, flow: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], contexts: Tensor,
                      base: Callable[[Tensor], Tensor], log_prior: Tensor) -> Tensor:
    """[B, K] log p(z, y = k) in nats, float32 (float64 for float64 z).

    z          [B, D], float64/float32
    flow       flow(z, context) -> (z_h, log_det), a conditional `Bijection`; it is called once
    contexts   [K, E], K >= 1, the vector that stands for each class
    base       base(z_h) -> [B K] log-density in nats
    log_prior  [K] log p(y = k)

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
    check_device(op, z, contexts=contexts, log_prior=log_prior)
    z_h, log_det = flow(*class_pairs(z, contexts))
    return (log_det + base(z_h)).view(z.shape[0], contexts.shape[0]) + log_prior
