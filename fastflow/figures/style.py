"""How every picture looks."""

import matplotlib

COLORS = matplotlib.colormaps["tab10"].colors
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
}
SHOWN = 20  # classes in a picture, at most


def color_of(number: int) -> tuple[float, float, float]:
    """The colour of a class or a seed; they repeat after ten."""
    return COLORS[number % len(COLORS)]
