"""What the ActNorms of all libraries share: the batch that initialises one must have deviations."""

import warnings

from fastflow._backend import _constant_to_the_compiler


def measurable(values: int) -> bool:
    """Whether so many values a channel have a deviation; warns if not, where a library makes its parameters NaN."""
    if values < 2:
        _warn_of_few()
    return values >= 2


@_constant_to_the_compiler  # a graph is warned of when it is made; a number that is dynamic would be no constant
def _warn_of_few() -> None:
    warnings.warn("ActNorm: x has fewer than 2 values a channel, expected more: the layer stays uninitialised; call it "
                  "with a larger batch first", stacklevel=3)
