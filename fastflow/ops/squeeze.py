"""Squeeze: r x r pixels become one pixel with r^2 times the channels. A permutation: log_det is 0.

    position   z[:, (r dy + dx) C + c, i, j]   = x[:, c, h, w]        (SCNF)
    channel    z[:, r^2 c + r dy + dx, i, j]   = x[:, c, h, w]        (RealNVP code, FlowGMM)

with 0 <= dy, dx < r. The r x r pixels are neighbours, h = r i + dy and w = r j + dx, or, interleaved, as far from each
other as they can be, h = (H / r) dy + i and w = (W / r) dx + j.

The order decides what the first half of the channels means to a later coupling or factor-out. RealNVP (Dinh et al.
2017, arXiv 1605.08803, section 3.6) has r = 2. TzK (Livne and Fleet 2018, arXiv 1811.01837) squeezes, mixes channels
and un-squeezes at each step. Alternating neighbours with interleaved pixels then joins every pixel to every other in
two steps if r^2 is at least H and W; between powers of two a smaller r never does, however many steps there are.
"""

from torch import Tensor

from fastflow.ops._checks import bad_shape, bad_type
from fastflow.ops.packing import has_channels_last

ORDERS = ("position", "channel")


def check_settings(op: str, order: str, factor: int) -> None:
    """Raises ValueError for an unknown order or a factor that is no integer of at least 2."""
    if order not in ORDERS:
        raise ValueError(f"{op}: order is {order!r}, expected one of {', '.join(ORDERS)}")
    if not isinstance(factor, int) or factor < 2:
        raise ValueError(f"{op}: factor is {factor!r}, expected an integer of at least 2")


def multiples(factor: int) -> str:
    """What height and width must be, for messages."""
    return "even height and width" if factor == 2 else f"height and width that are multiples of {factor}"


def squeeze(x: Tensor, *, order: str = "position", factor: int = 2, interleaved: bool = False, inverse: bool = False,
            ) -> Tensor:
    """Trades space for channels, or, with `inverse`, channels for space.

    x            [B, C, H, W] of any dtype, H and W multiples of `factor` r; inverse: C a multiple of r^2
    order        "position" or "channel": which index is the outer one among the new channels
    factor       r, how many times H and W shrink, at least 2
    interleaved  which r x r pixels become one: those H / r and W / r apart instead of neighbours

    Returns [B, r^2 C, H / r, W / r]; inverse [B, C / r^2, r H, r W]. Raises TypeError or ValueError naming the
    argument. Channels that lie last in memory do so in the result.
    """
    op = "squeeze"
    if not isinstance(x, Tensor):
        raise bad_type(op, "x", x)
    check_settings(op, order, factor)
    if x.dim() != 4:
        raise bad_shape(op, "x", x, "[B, C, H, W]")
    rows, channels, height, width = x.shape
    if inverse:
        if channels % factor**2:
            raise bad_shape(op, "x", x, f"channels that are a multiple of {factor**2}")
        channels, height, width = channels // factor**2, height * factor, width * factor
    elif height % factor or width % factor:
        raise bad_shape(op, "x", x, multiples(factor))
    lines, columns = height // factor, width // factor
    if interleaved:
        apart, (dy, i, dx, j) = (rows, channels, factor, lines, factor, columns), (2, 3, 4, 5)
    else:
        apart, (i, dy, j, dx) = (rows, channels, lines, factor, columns, factor), (2, 3, 4, 5)
    axes = (0, dy, dx, 1, i, j) if order == "position" else (0, 1, dy, dx, i, j)
    if inverse:
        back = sorted(range(6), key=axes.__getitem__)
        moved, shape, space = x.reshape([apart[axis] for axis in axes]).permute(back), (height, width), 4
    else:
        moved, shape, space = x.reshape(apart).permute(axes), (lines, columns), 2
        channels *= factor**2
    if has_channels_last(x):
        moved = moved.permute(0, *range(6 - space, 6), *range(1, 6 - space))
        return moved.reshape(rows, *shape, channels).permute(0, 3, 1, 2)
    return moved.reshape(rows, channels, *shape)
