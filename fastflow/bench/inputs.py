"""What a measured call gets: tensors from a fixed seed, and the gradients that come back."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastflow.bench.cases import Case


@dataclass(frozen=True)
class Inputs:
    """`arguments` of the call in order; `leaves` among them get gradients; `grads` belong to its first outputs."""

    arguments: tuple[Tensor | None, ...]
    leaves: tuple[Tensor | None, ...] = ()
    grads: tuple[Tensor, ...] = ()

    def tracked(self) -> tuple[Tensor, ...]:
        """The leaves, from now on recorded by autograd."""
        return tuple(leaf.requires_grad_() for leaf in self.leaves if leaf is not None)


@dataclass(frozen=True)
class OpProviders:
    """How each provider computes one op: `inputs(case, provider, device)`, and `calls` {provider: (case, inputs) -> the
    function of those arguments}. `limited` names the variants of a provider that does not have them all; `refuses` says
    why a provider is not run on a case, or nothing."""

    inputs: Callable[[Case, str, str], Inputs]
    calls: dict[str, Callable[[Case, Inputs], Callable]]
    limited: dict[str, tuple[str, ...]] = field(default_factory=dict)
    refuses: Callable[[str, Case], str] = lambda provider, case: ""


class Normal:
    """Normal tensors for a case, the same for every provider: drawn on the device from seed 0."""

    def __init__(self, case: Case, device: str) -> None:
        self.dtype, self.device = case.torch_dtype, device
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return self._draw(shape).to(self.dtype)

    def reduced(self, *shape: int) -> Tensor:
        """In the dtype of log-determinants: float64 for float64, else float32."""
        dtype = torch.float64 if self.dtype is torch.float64 else torch.float32
        return self._draw(shape).to(dtype)

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)
