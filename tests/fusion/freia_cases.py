"""Every FrEIA layer that is fused, with its options, for tests of what all of them promise."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from peers import FrEIA
from torch import Tensor, nn

M = FrEIA.modules
Shape = tuple[int, ...]
SIZES = {1: (7,), 2: (5, 3), 3: (6, 4, 4), 4: (5, 2, 3, 2)}  # of a row, by rank


class Case(NamedTuple):
    """A layer; the shape of a row of its input, of its output, and of each condition."""

    layer: nn.Module
    x: Shape
    z: Shape
    conditions: tuple[Shape, ...] = ()

    def inputs(self, rows: int, rev: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        shapes = (self.z if rev else self.x, *self.conditions)
        return tuple(torch.randn(rows, *shape, dtype=dtype) for shape in shapes)


def call(layer: nn.Module, x: Tensor, *conditions: Tensor, rev: bool = False) -> tuple:
    """Calls a layer as FrEIA's containers do."""
    return layer([x], c=list(conditions), rev=rev) if conditions else layer([x], rev=rev)


def subnet(rank: int, last: Callable[[], nn.Module] = nn.Identity) -> Callable[[int, int], nn.Module]:
    """A constructor of small conditioners for rows of this rank."""
    kind, kernel = ((nn.Linear, ()), (nn.Conv1d, (1,)), (nn.Conv2d, (1,)), (nn.Conv3d, (1,)))[rank - 1]
    return lambda inputs, outputs: nn.Sequential(kind(inputs, 6, *kernel), nn.Tanh(), kind(6, outputs, *kernel), last())


def _case(make: Callable, x: Shape, z: Shape | None = None, conditions: Iterable[Shape] = (), **options) -> Case:
    conditions = tuple(conditions)
    return Case(make([x], **({"dims_c": list(conditions)} if conditions else {}), **options), x, z or x, conditions)


def _coupling(name: str, rank: int = 1, condition: int = 0, **options) -> Callable[[], Case]:
    def make() -> Case:
        row = SIZES[rank]
        conditions = [(condition, *row[1:]), (1, *row[1:])] if condition else []
        return _case(getattr(M, name), row, conditions=conditions, subnet_constructor=subnet(rank), **options)

    return make


COUPLINGS = {
    f"{name}-{label}": _coupling(name, **options)
    for names, label, options in (
        (("GLOW", "RNVP", "GIN"), "rank1-c", {"condition": 2}), (("GLOW", "GIN"), "rank2", {"rank": 2}),
        (("GLOW", "RNVP", "GIN"), "rank3", {"rank": 3, "split_len": 0.3}), (("RNVP", "GIN"), "rank4", {"rank": 4}),
        (("GLOW",), "rank3-c", {"rank": 3, "condition": 2}), (("GLOW", "GIN"), "split2", {"split_len": 2}),
        (("GLOW", "GIN"), "tanh", {"clamp_activation": "TANH", "clamp": 1.3}),
        (("RNVP", "GIN"), "sigmoid-rank2", {"clamp_activation": "SIGMOID", "rank": 2}))
    for name in (f"{each}CouplingBlock" for each in names)
} | {
    "AffineCouplingOneSided": _coupling("AffineCouplingOneSided"),
    "AffineCouplingOneSided-rank3-c": _coupling("AffineCouplingOneSided", rank=3, condition=2, split_len=4),
    "ConditionalAffineTransform-c": _coupling("ConditionalAffineTransform", condition=3),
    "ConditionalAffineTransform-rank3": _coupling("ConditionalAffineTransform", rank=3, condition=2, clamp=0.7),
}

ALL_IN_ONE = {
    f"AllInOneBlock-{label}": _coupling("AllInOneBlock", **options)
    for label, options in (
        ("rank1", {}), ("rank2", {"rank": 2}), ("rank3", {"rank": 3}), ("rank4", {"rank": 4}),
        ("c", {"condition": 2}), ("rank3-c", {"rank": 3, "condition": 2}),
        ("clamp", {"affine_clamping": 0.8}), ("init", {"global_affine_init": 0.6}),
        ("sigmoid", {"global_affine_type": "SIGMOID"}), ("exp", {"global_affine_type": "EXP", "rank": 3}),
        ("gin", {"gin_block": True}), ("gin-rank3", {"gin_block": True, "rank": 3, "condition": 2}),
        ("soft", {"permute_soft": True}), ("soft-rank3", {"permute_soft": True, "rank": 3}),
        ("householder", {"learned_householder_permutation": 3, "permute_soft": True}),
        ("householder-rank3", {"learned_householder_permutation": 2, "permute_soft": True, "rank": 3}),
        ("reverse", {"reverse_permutation": True}),
        ("reverse-soft-rank2", {"reverse_permutation": True, "permute_soft": True, "rank": 2}),
        ("reverse-householder", {"reverse_permutation": True, "permute_soft": True, "rank": 3,
                                 "learned_householder_permutation": 2}),
        ("reverse-gin", {"reverse_permutation": True, "gin_block": True}))
}


def _started(case: Case) -> Case:
    case.layer([2 * torch.randn(50, *case.x) + 0.3])
    return case


def _matrix(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size))[0] + 0.1 * torch.randn(size, size)


LINEAR = {
    "ActNorm-rank1": lambda: _started(_case(M.ActNorm, (7,))),
    "ActNorm-rank3": lambda: _started(_case(M.ActNorm, (6, 4, 4))),
    "ActNorm-rank4": lambda: _started(_case(M.ActNorm, (5, 2, 3, 2))),
    "PermuteRandom-rank1": lambda: _case(M.PermuteRandom, (7,), seed=3),
    "PermuteRandom-rank3": lambda: _case(M.PermuteRandom, (6, 4, 4)),
    "FixedLinearTransform": lambda: _case(M.FixedLinearTransform, (7,), M=_matrix(7)),
    "FixedLinearTransform-b": lambda: _case(M.FixedLinearTransform, (7,), M=_matrix(7), b=torch.randn(7)),
    "Fixed1x1Conv": lambda: _case(M.Fixed1x1Conv, (6, 4, 4), M=_matrix(6)),
    "OrthogonalTransform": lambda: _case(M.OrthogonalTransform, (7,), correction_interval=10**6, clamp=2.0),
    "HouseholderPerm-3": lambda: _case(M.HouseholderPerm, (7,), n_reflections=3),
    "HouseholderPerm-6": lambda: _case(M.HouseholderPerm, (7,), n_reflections=6),
    "HouseholderPerm-fixed": lambda: _case(M.HouseholderPerm, (7,), n_reflections=4, fixed=True),
}

DOWN, UP = (6, 4, 8), (24, 2, 4)
RESHAPES = {
    f"{name}Downsampling-{label}": lambda name=name, options=options: _case(
        getattr(M, f"{name}Downsampling"), DOWN, UP, **options)
    for name, label, options in (
        ("IRevNet", "conv", {}), ("IRevNet", "legacy", {"legacy_backend": True}), ("Haar", "plain", {}),
        ("Haar", "ordered", {"order_by_wavelet": True, "rebalance": 0.5}))
} | {
    f"{name}Upsampling-{label}": lambda name=name, options=options: _case(
        getattr(M, f"{name}Upsampling"), UP, DOWN, **options)
    for name, label, options in (
        ("IRevNet", "conv", {}), ("IRevNet", "legacy", {"legacy_backend": True}), ("Haar", "plain", {}),
        ("Haar", "ordered", {"order_by_wavelet": True, "rebalance": 0.5}))
} | {"Flatten": lambda: _case(M.Flatten, (6, 2, 4), (48,))}

CASES = COUPLINGS | ALL_IN_ONE | LINEAR | RESHAPES
