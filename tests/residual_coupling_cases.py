"""Operands of residual_coupling, ragged, strided, pairs in any order; and what its kernels must give."""

from dataclasses import dataclass

import torch
from oracles import assert_three_way
from torch import Tensor

from fastflow.ops.residual_coupling import backward_reference, reference
from fastflow.ops.scale_map import KINDS


@dataclass(frozen=True)
class Case:
    """`rows` of passive and active before classes; `pairs`: how many of rows x classes, None for all in order."""

    rows: int
    classes: int
    passive: int
    active: int
    hidden: int
    blocks: int
    dtype: torch.dtype = torch.float32
    pairs: int | None = None
    passive_shared: bool = False
    active_shared: bool = False
    kind: str = "sigmoid"
    shift_first: bool = True
    log_det: bool = True

    @property
    def results(self) -> int:
        return self.rows * self.classes if self.pairs is None else self.pairs

    @property
    def settings(self) -> tuple:
        bias, eps = {"sigmoid": (2.0, 1e-6), "softplus": (0.5, 1e-3)}.get(self.kind, (0.0, 0.0))
        clamp = 1.7 if self.kind.startswith("clamp") or self.kind == "soft_clip" else 1.0
        return KINDS.index(self.kind), bias, eps, clamp, self.shift_first

    def operands(self, device: str = "cpu") -> tuple:
        """The arguments of the op."""
        made = torch.Generator().manual_seed(0)

        def random(*shape, scale=1.0):
            return (scale * torch.randn(*shape, generator=made)).to(device)

        def matrix(out, inputs, scale=1.0):
            return random(inputs, out, scale=scale * inputs**-0.5).to(self.dtype).T

        width, results = self.passive + self.active, self.results
        passive = random(self.rows if self.passive_shared else results, width)[:, : self.passive]
        active = random(self.rows if self.active_shared else results, width)[:, self.passive :]
        weights = [matrix(self.hidden, self.passive)]
        for _ in range(self.blocks):
            weights += [matrix(self.hidden, self.hidden), random(self.hidden), matrix(self.hidden, self.hidden),
                        random(self.hidden)]
        weights += [random(self.hidden), random(self.hidden), matrix(2 * self.active, self.hidden, 0.3),
                    random(2 * self.active, scale=0.3)]
        log_det = random(results) if self.log_det else None
        table = random(self.classes, self.hidden)
        pairs = None
        if self.pairs is not None:
            pairs = torch.randint(self.rows * self.classes, (self.pairs,), generator=made).to(device)
        return (passive, active, log_det, table, weights, pairs, self.passive_shared, self.active_shared,
                *self.settings)

    def backward_operands(self, device: str = "cpu") -> tuple:
        """The arguments of the op's backward."""
        passive, _, _, table, weights, pairs, passive_shared, _, *settings = self.operands(device)
        z = reference(*double(self.operands()))[0].float().to(device)
        made = torch.Generator().manual_seed(1)
        grad_z = torch.randn(self.active, self.results, generator=made).to(device).T
        grad_log_det = torch.randn(1, generator=made).to(device).expand(self.results)
        return passive, z, table, weights, pairs, passive_shared, *settings, grad_z, grad_log_det


def double(operands: tuple) -> tuple:
    """The same in float64 on a CPU."""
    def one(value):
        if isinstance(value, list):
            return [one(each) for each in value]
        if isinstance(value, Tensor):
            return value.double().cpu() if value.is_floating_point() else value.cpu()
        return value

    return tuple(one(value) for value in operands)


def flat(results: tuple) -> list[Tensor]:
    return [tensor for value in results for tensor in (value if isinstance(value, list) else [value])]


def _names(case: Case) -> list[str]:
    blocks = [f"{name} of block {b}" for b in range(case.blocks) for name in ("W1", "b1", "W2", "b2")]
    return ["active", "grad_active", "grad_passive", "grad_table", "W0", *blocks, "norm_shift", "norm_scale", "W3",
            "b3"]


def assert_forward(case: Case, found: tuple, operands: tuple) -> None:
    truth, eager = reference(*double(operands)), reference(*operands)
    for name, *values in zip(("z", "log_det"), found, eager, truth, strict=True):
        assert_three_way(*(value.cpu() for value in values), dtype=case.dtype, name=name)


def assert_backward(case: Case, found: tuple, operands: tuple) -> None:
    truth, eager = backward_reference(*double(operands)), backward_reference(*operands)
    for name, *values in zip(_names(case), flat(found), flat(eager), flat(truth), strict=True):
        assert_three_way(*(value.cpu() for value in values), dtype=case.dtype, name=name)
