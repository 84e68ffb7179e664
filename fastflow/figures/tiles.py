"""Images side by side."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor


def tile(axes: Axes, images: Tensor) -> None:
    """Shows images [rows, columns, C, H, W] in [0, 1] as a table with a tick at each row and column.

    Three channels are colours; of any other number the first is shown, dark on light.
    """
    rows, columns, channels, height, width = images.shape
    gap = max(1, height // 8)
    page = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for row in range(rows):
        for column in range(columns):
            image = images[row, column].permute(1, 2, 0).numpy()
            y, x = row * (height + gap), column * (width + gap)
            page[y : y + height, x : x + width] = image if channels == 3 else 1 - image[..., :1]
    axes.imshow(page.clip(0, 1), interpolation="nearest")  # means of real-valued models may leave [0, 1]
    axes.set_xticks([column * (width + gap) + (width - 1) / 2 for column in range(columns)], range(columns))
    axes.set_yticks([row * (height + gap) + (height - 1) / 2 for row in range(rows)], range(rows))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def frame(axes: Axes, row: int, column: int, shape: tuple[int, int, int], color) -> None:
    """Frames one image of shape (C, H, W) of the table that `tile` made."""
    _, height, width = shape
    corner = (axes.get_xticks()[column] - width / 2, axes.get_yticks()[row] - height / 2)
    axes.add_patch(Rectangle(corner, width, height, fill=False, color=color, linewidth=1.5, clip_on=False))
