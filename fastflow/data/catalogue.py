"""Every named data set: how it is loaded, what is known of it, and whether its files are here."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from fastflow.data.cifar10 import CIFAR10, cifar10
from fastflow.data.digits import digits
from fastflow.data.idx import FASHION_MNIST, KMNIST, MNIST, fashion_mnist, kmnist, mnist
from fastflow.data.images import ImageData
from fastflow.data.mnist_omniglot import (
    MNIST_OMNIGLOT,
    MNIST_OMNIGLOT_SMALL,
    mnist_omniglot,
    mnist_omniglot_small,
)
from fastflow.data.norb import SMALL_NORB, small_norb
from fastflow.data.official import Official
from fastflow.data.omniglot import OMNIGLOT, OMNIGLOT_SMALL, omniglot, omniglot_small
from fastflow.data.svhn import SVHN, SVHN_EXTRA, svhn, svhn_extra
from fastflow.data.text import AG_NEWS, YAHOO, ag_news, yahoo
from fastflow.data.toys import circles, eight_gaussians, moons, pinwheel
from fastflow.data.uci import HEPMASS, MINIBOONE, hepmass, miniboone
from fastflow.data.vectors import VectorData


@dataclass(frozen=True)
class Entry:
    """A named set. `load` takes the folder of its files, or nothing where there are none."""

    official: Official
    load: Callable[..., ImageData | VectorData]


def _built_in(name: str, load: Callable, classes: int, shape: tuple[int, ...], train: int, test: int) -> Entry:
    return Entry(Official(name, "fastflow", {}, classes, shape, train, test), load)


_ENTRIES = [
    _built_in("digits", digits, 10, (1, 8, 8), 1297, 500),
    Entry(MNIST, mnist),
    Entry(FASHION_MNIST, fashion_mnist),
    Entry(KMNIST, kmnist),
    Entry(OMNIGLOT, omniglot),
    Entry(OMNIGLOT_SMALL, omniglot_small),
    Entry(MNIST_OMNIGLOT, mnist_omniglot),
    Entry(MNIST_OMNIGLOT_SMALL, mnist_omniglot_small),
    Entry(SVHN, svhn),
    Entry(SVHN_EXTRA, svhn_extra),
    Entry(SMALL_NORB, small_norb),
    Entry(CIFAR10, cifar10),
    _built_in("moons", moons, 2, (2,), 1000, 500),
    _built_in("circles", circles, 2, (2,), 1000, 500),
    _built_in("eight-gaussians", eight_gaussians, 3, (2,), 1000, 500),
    _built_in("pinwheel", pinwheel, 5, (2,), 1000, 500),
    Entry(HEPMASS, hepmass),
    Entry(MINIBOONE, miniboone),
    Entry(AG_NEWS, ag_news),
    Entry(YAHOO, yahoo),
]
DATA_SETS = {entry.official.name: entry for entry in _ENTRIES}


def load(name: str, root: str | os.PathLike | None = None) -> ImageData | VectorData:
    """A named set from its own folder in `root`, or in $FASTFLOW_DATA.

    Raises ValueError for an unknown name, and what its loader raises for missing and wrong files.
    """
    if name not in DATA_SETS:
        raise ValueError(f"{name}: no such data set, expected one of {', '.join(DATA_SETS)}")
    entry = DATA_SETS[name]
    return entry.load(entry.official.folder(root=root)) if entry.official.files else entry.load()


def listing(root: str | os.PathLike | None = None) -> str:
    """A line a set: name, classes, training and test rows, shape of one, where its files are, where they come from."""
    root = root or os.environ.get("FASTFLOW_DATA")
    rows = [("name", "classes", "train", "test", "shape", "files", "from")]
    for name, entry in DATA_SETS.items():
        official = entry.official
        counts = [f"{count:,}" if count else "?" for count in (official.train, official.test)]
        shape = "x".join(map(str, official.shape)) if official.shape else "?"
        rows.append((name, str(official.classes), *counts, shape, _place(official, root), official.url))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", f"data root: {root or 'none; set FASTFLOW_DATA or give --data-root'}"])


def _place(official: Official, root: str | os.PathLike | None) -> str:
    if not official.files:
        return "built in"
    here = root and official.is_in(official.folder(root=root))
    return official.places if here else f"not in {official.places}"


def check(name: str, root: str | os.PathLike | None = None) -> str:
    """Loads a set, which verifies its files, and says in a line what it is. Raises as `load`."""
    about = load(name, root).describe()
    verified = _verified(DATA_SETS[name].official, root)
    shape = "x".join(map(str, about["shape"]))
    return f"{name}: {about['train']:,} + {about['test']:,} x {shape}, {about['classes']} classes; {verified}"


def _verified(official: Official, root: str | os.PathLike | None) -> str:
    if not official.files:
        return "built in"
    paths = [official.find(official.folder(root=root), name) for name in official.files]
    compared = sum(official.checksum(path) is not None for path in paths)
    return f"{compared} of {len(paths)} files by checksum, all by structure"
