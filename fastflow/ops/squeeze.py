"""Squeeze: each 2 x 2 block of pixels becomes one pixel with four times the channels. A permutation: log_det is 0.

    position   z[:, (2 dy + dx) C + c, i, j] = x[:, c, 2 i + dy, 2 j + dx]        (SCNF)
    channel    z[:, 4 c + 2 dy + dx, i, j]   = x[:, c, 2 i + dy, 2 j + dx]        (RealNVP code, FlowGMM)

The order decides what the first half of the channels means to a later coupling or factor-out. RealNVP (Dinh et al.
2017, arXiv 1605.08803, section 3.6).
"""

from torch import Tensor

from fastflow.ops._checks import bad_shape, bad_type

ORDERS = ("position", "channel")


def squeeze(x: Tensor, *, order: str = "position", inverse: bool = False) -> Tensor:
    """Trades space for channels, or, with `inverse`, channels for space.

    x      [B, C, H, W] of any dtype, H and W even; inverse: C a multiple of 4
    order  "position" or "channel": which index is the outer one among the new channels

    Returns [B, 4 C, H / 2, W / 2]; inverse [B, C / 4, 2 H, 2 W]. Raises TypeError or ValueError naming the argument.
    """
    op = "squeeze"
    if not isinstance(x, Tensor):
        raise bad_type(op, "x", x)
    if order not in ORDERS:
        raise ValueError(f"{op}: order is {order!r}, expected one of {', '.join(ORDERS)}")
    if x.dim() != 4:
        raise bad_shape(op, "x", x, "[B, C, H, W]")
    rows, channels, height, width = x.shape
    if inverse:
        if channels % 4:
            raise bad_shape(op, "x", x, "channels that are a multiple of 4")
        blocks, axes = ((2, 2, channels // 4), (0, 3, 4, 1, 5, 2)) if order == "position" else (
            (channels // 4, 2, 2), (0, 1, 4, 2, 5, 3))
        return x.reshape(rows, *blocks, height, width).permute(axes).reshape(rows, channels // 4, 2 * height, 2 * width)
    if height % 2 or width % 2:
        raise bad_shape(op, "x", x, "even height and width")
    axes = (0, 3, 5, 1, 2, 4) if order == "position" else (0, 1, 3, 5, 2, 4)
    blocks = x.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(axes)
    return blocks.reshape(rows, 4 * channels, height // 2, width // 2)
