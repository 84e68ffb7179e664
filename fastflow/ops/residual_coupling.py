"""An affine coupling with its conditioner, a residual MLP that knows the class, for many pairs (row, class) at once.

    h = W0 passive + table[class]                         table[k] = W_c context[k] + b0: all that the class changes
    h = h + W2 relu(W1 relu(h) + b1) + b2                 once a residual block
    (s, t) = W3 relu((h - norm_shift) norm_scale) + b3    [s | t], each as wide as `active`
    z = (active + t) c  or  active c + t                  c the scale of s by a `ScaleMap`, log_det += sum of log c

Result n belongs to pair p = pairs[n], or n where every pair is meant: to row p // K and class p % K. An operand that is
`shared` has one row for all classes, and what depends on it alone is computed once a row; the others have one a result.
Backward starts from z: it computes the conditioner again, `active` by the inverse map, and keeps nothing of either.
SCNF's head (Atanov et al. 2019, arXiv 1905.00505, section 3): two of these after each affine map of the features.
"""

import torch
from torch import Tensor

from fastflow.ops._define import Op
from fastflow.ops.scale_map import log_scale_slope, scale_of


def _pairs(table: Tensor, pairs: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """(row, class) of each result."""
    if pairs is None:
        pairs = torch.arange(rows * table.shape[0], device=table.device)
    return pairs // table.shape[0], pairs % table.shape[0]


def _count(pairs: Tensor | None, table: Tensor, passive: Tensor, shared: bool) -> int:
    """How many results there are."""
    if pairs is not None:
        return pairs.shape[0]
    return passive.shape[0] * (table.shape[0] if shared else 1)


def _spread(operand: Tensor, shared: bool, row: Tensor) -> Tensor:
    return operand[row] if shared else operand


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """In the weight's dtype, and from there on in x's."""
    return torch.nn.functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def _hidden(passive: Tensor, table: Tensor, weights: list[Tensor], row: Tensor, klass: Tensor, shared: bool,
            ) -> list[Tensor]:
    """The input of every rectifier, the last one's included: 2 R + 1 tensors [N, H]."""
    inner = [_spread(_linear(passive, weights[0]), shared, row) + table[klass]]
    h = inner[0]
    blocks = weights[1:-4]
    for first, first_bias, second, second_bias in zip(*[iter(blocks)] * 4, strict=True):
        middle = _linear(torch.relu(h), first) + first_bias
        h = h + _linear(torch.relu(middle), second) + second_bias
        inner += [middle, h]
    norm_shift, norm_scale = weights[-4:-2]
    inner[-1] = (h - norm_shift) * norm_scale
    return inner


def reference(passive: Tensor, active: Tensor, log_det: Tensor | None, table: Tensor, weights: list[Tensor],
              pairs: Tensor | None, passive_shared: bool, active_shared: bool, kind: int, bias: float, eps: float,
              clamp: float, shift_first: bool) -> tuple[Tensor, Tensor]:
    """The definition, in differentiable PyTorch. passive [N or B, P], active [N or B, A], log_det [N], table [K, H],
    weights [W0 [H, P], (W1 [H, H], b1 [H], W2, b2) a block, norm_shift [H], norm_scale [H], W3 [2 A, H], b3 [2 A]]: the
    matrices in the dtype of the products, all else float32 (float64)."""
    rows = _count(pairs, table, passive, passive_shared)
    row, klass = _pairs(table, pairs, rows // table.shape[0])
    rectified = torch.relu(_hidden(passive, table, weights, row, klass, passive_shared)[-1])
    s, t = (_linear(rectified, weights[-2]) + weights[-1]).chunk(2, dim=1)
    c, log_c = scale_of(s, None, kind, bias, eps, clamp)
    x = _spread(active, active_shared, row)
    z = (x + t) * c if shift_first else x * c + t
    own = log_c.sum(1)
    return z, own if log_det is None else log_det + own


def backward_reference(
    passive: Tensor, z: Tensor, table: Tensor, weights: list[Tensor], pairs: Tensor | None, passive_shared: bool,
    kind: int, bias: float, eps: float, clamp: float, shift_first: bool, grad_z: Tensor, grad_log_det: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """(active, grad_active, grad_passive, grad_table, grad_weights): the first three a row for each result, summed over
    nothing; the gradients of the weights float32 (float64)."""
    rows = _count(pairs, table, passive, passive_shared)
    row, klass = _pairs(table, pairs, rows // table.shape[0])
    inner = _hidden(passive, table, weights, row, klass, passive_shared)
    rectified = torch.relu(inner[-1])
    made = _linear(rectified, weights[-2]) + weights[-1]
    s, t = made.chunk(2, dim=1)
    c, _ = scale_of(s, None, kind, bias, eps, clamp)
    active = z / c - t if shift_first else (z - t) / c
    grad_active = grad_z * c
    grad_log_c = grad_z * (z if shift_first else z - t) + grad_log_det[:, None]
    grad_s = grad_log_c * log_scale_slope(s, None, kind, bias, eps, clamp)
    delta = torch.cat([grad_s, grad_active if shift_first else grad_z], 1)

    def products(delta: Tensor, inputs: Tensor) -> Tensor:
        return delta.T @ inputs

    grads = [products(delta, rectified), delta.sum(0)]
    norm_scale = weights[-3]
    delta = _linear(delta, weights[-2].T) * (inner[-1] > 0)
    grads = [-(delta * norm_scale).sum(0), (delta * (inner[-1] / norm_scale)).sum(0), *grads]
    delta = delta * norm_scale
    for block in range(len(weights[1:-4]) // 4 - 1, -1, -1):
        first, _, second, _ = weights[1 + 4 * block : 5 + 4 * block]
        h, middle = inner[2 * block], inner[2 * block + 1]
        grad_second = [products(delta, torch.relu(middle)), delta.sum(0)]
        delta_middle = _linear(delta, second.T) * (middle > 0)
        grads = [products(delta_middle, torch.relu(h)), delta_middle.sum(0), *grad_second, *grads]
        delta = delta + _linear(delta_middle, first.T) * (h > 0)
    grad_table = torch.zeros_like(table).index_add_(0, klass, delta)
    grads = [products(delta, _spread(passive, passive_shared, row)), *grads]
    return active, grad_active, _linear(delta, weights[0].T), grad_table, grads


def _fake(passive, active, log_det, table, weights, pairs, passive_shared, active_shared, *settings):
    rows = _count(pairs, table, passive, passive_shared)
    return active.new_empty(rows, active.shape[1]), active.new_empty(rows)


def _backward_fake(passive, z, table, weights, *settings):
    grad_passive = z.new_empty(z.shape[0], passive.shape[1])
    grads = [z.new_empty(weight.shape) for weight in weights]
    return z.new_empty(z.shape), z.new_empty(z.shape), grad_passive, table.new_empty(table.shape), grads


MOST_FEATURES_CUDA = 512  # of P, A and H, for the CUDA kernels, which hold float32 state

_SETTINGS = "int kind, float bias, float eps, float clamp, bool shift_first"
forward_op = Op(
    "residual_coupling",
    "(Tensor passive, Tensor active, Tensor? log_det, Tensor table, Tensor[] weights, Tensor? pairs,"
    f" bool passive_shared, bool active_shared, {_SETTINGS}) -> (Tensor, Tensor)",
    reference=reference, fallback=reference, fake=_fake, on_cuda="cuda",
)
backward_op = Op(
    "residual_coupling_backward",
    "(Tensor passive, Tensor z, Tensor table, Tensor[] weights, Tensor? pairs, bool passive_shared,"
    f" {_SETTINGS}, Tensor grad_z, Tensor grad_log_det) -> (Tensor, Tensor, Tensor, Tensor, Tensor[])",
    reference=backward_reference, fallback=backward_reference, fake=_backward_fake, on_cuda="cuda",
)
