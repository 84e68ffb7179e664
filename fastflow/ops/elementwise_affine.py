"""Element-wise affine map: y = x exp(log_scale) + shift, one shift and one scale an element, or a channel.

    log_det = sum of log_scale over the elements of a row     (negated for the inverse, x = (y - shift) exp(-log_scale))

The affine layer of TzK (Livne and Fleet 2018, arXiv 1811.01837). It is `act_norm` with the shift last, by the same
kernels: a parameter an element is a parameter a channel of the flattened rows.
"""

from torch import Tensor

from fastflow.ops.act_norm import check, check_parameter, compute


def elementwise_affine(x: Tensor, shift: Tensor, log_scale: Tensor, *, log_det: Tensor | None = None,
                       inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Scales and shifts every element, or every channel, by its own parameters, or undoes exactly that.

    x          [B, C, *spatial], 2 to 5 dims, float64/float32/bfloat16/float16, any strides
    shift      [C, *spatial], one an element, or [C], one a channel; any of these dtypes
    log_scale  like shift, nats, any of these dtypes
    log_det    [B] running log-determinant in nats, float32 (float64 for float64 x)

    Returns (y, log_det), y in x's dtype. Arithmetic is float32 (float64 for float64 x). Raises TypeError or ValueError
    naming the argument; RuntimeError if a forced backend cannot serve the call.
    """
    op = "elementwise_affine"
    check(op, x, log_det)
    channels, features = x.shape[1:2], x.shape[1:]
    each = channels if isinstance(shift, Tensor) and shift.shape == channels else features
    check_parameter(op, "shift", shift, each, x, f"one an element of x, or {tuple(channels)}, one a channel")
    check_parameter(op, "log_scale", log_scale, each, x, "to match shift")
    if each == channels:
        return compute(x, shift, log_scale, log_det, shift_first=False, inverse=inverse)
    flat = (value.flatten() for value in (shift, log_scale))
    y, log_det = compute(x.flatten(1), *flat, log_det, shift_first=False, inverse=inverse)
    return y.view(x.shape), log_det
