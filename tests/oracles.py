"""What every test of an op measures with: float64 truth, three-way tolerances, Jacobians, awkward tensors."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

UNIT_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def assert_three_way(kernel: Tensor, eager: Tensor, truth: Tensor, dtype: torch.dtype | None = None,
                     name: str = "", terms: Tensor | None = None) -> None:
    """`|kernel - truth| <= 2 |eager - truth| + 4 u max|truth|` in the maximum norm, u of the storage `dtype`.

    `truth` is float64 on the same (rounded) inputs, `eager` the plain PyTorch result: in the storage dtype for stored
    tensors, in float32 on upcast inputs for log_det and every other reduction. Where the truth is not finite or
    overflows the storage dtype, kernel and eager must agree in kind (same infinities, NaN where NaN). `terms`, for a
    sum whose terms may cancel, is the sum of their absolute values, which then stands in for |truth|.
    """
    dtype = dtype or kernel.dtype
    assert kernel.shape == truth.shape, f"{name}: shape {tuple(kernel.shape)}, expected {tuple(truth.shape)}"
    kernel, eager, truth = kernel.detach().double(), eager.detach().double(), truth.detach().double()
    finite = truth.isfinite() & eager.isfinite()
    odd = ~finite & ~(kernel.isnan() & eager.isnan()) & (kernel != eager)
    assert not odd.any(), f"{name}: {int(odd.sum())} non-finite values differ from eager's"
    if not finite.any():
        return
    size = (truth if terms is None else terms)[finite].abs().max().item()
    kernel, eager, truth = kernel[finite], eager[finite], truth[finite]
    error = (kernel - truth).abs().max().item()
    bound = 2 * (eager - truth).abs().max().item() + 4 * UNIT_ROUNDOFF[dtype] * size
    assert error <= bound, f"{name}: error {error:.3e} exceeds {bound:.3e} (2 eager + 4 u max)"


def jacobian_log_det(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log|det d function(x) / dx| for each row of x [B, ...], from the autograd Jacobian, one matrix at a time."""
    log_dets = []
    for row in x:
        jacobian = torch.autograd.functional.jacobian(lambda r: function(r[None])[0].reshape(-1), row)
        log_dets.append(torch.linalg.slogdet(jacobian.reshape(row.numel(), row.numel())).logabsdet)
    return torch.stack(log_dets) if log_dets else x.new_zeros(0)


def relayout(x: Tensor, layout: str) -> Tensor:
    """The values of x in other memory: "contiguous", "channels_last" (4-D), "strided" (every second element of a
    larger storage, at an odd offset), "transposed" (first two dims swapped in memory) or "offset"."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()
    if layout == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    between = float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max
    if layout == "strided":
        storage = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), between)
        view = storage[..., 1::2]
    elif layout == "offset":
        storage = x.new_full((x.numel() + 3,), between)
        view = storage[3:].view(x.shape)
    else:
        raise ValueError(f"relayout: unknown layout {layout!r}")
    view.copy_(x)
    return view


LAYOUTS = ("contiguous", "channels_last", "strided", "transposed", "offset")


def assert_same_bits_on_any_threads(compute: Callable[[], Iterable[Tensor]]) -> None:
    """compute() gives tensors, the same bits with 1, 2 and 5 threads."""
    before, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(list(compute()))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(other, results[0], strict=True))
