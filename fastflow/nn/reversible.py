"""Training whose memory does not grow with depth: a layer's input is recomputed from its output by its inverse.

A segment of layers is one node of autograd. It keeps its input and its output; backward walks from the output to the
input, a layer at a time, and compares where it arrives with the kept input. Source: Gomez et al. 2017, "The reversible
residual network", algorithm 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastflow.nn.bijection import Bijection


@dataclass
class Segment:
    """Layers of a flow that are differentiated together: `first` is the index of the first, `inexact` holds that of
    every segment whose inverses were found to drift more than `drift_bound`."""

    layers: list[Bijection]
    first: int
    drift_bound: float
    inexact: set[int]

    def __call__(self, x: Tensor, context: Tensor | None, log_det: Tensor) -> tuple[Tensor, Tensor]:
        """The layers one after the other; records one node."""
        return _Reversed.apply(self, x, context, log_det, *self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        """What gets gradients, each once."""
        unique = dict.fromkeys(each for layer in self.layers for each in layer.parameters())
        return [parameter for parameter in unique if parameter.requires_grad]


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, segment, x, context, log_det, *parameters):
        ctx.segment, ctx.parameters = segment, parameters
        ctx.moment = _Moment(x.device)
        z = x
        for layer in segment.layers:
            ctx.moment.stash_random_state()
            z, log_det = layer(z, context, log_det)
        ctx.save_for_backward(x, z, context)
        return z, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_z, grad_log_det):
        x, z, context = ctx.saved_tensors
        segment, walk = ctx.segment, _Walk(context, grad_log_det, ctx.parameters)
        with ctx.moment.again(segment.layers) as replays:
            if segment.first not in segment.inexact:
                arrived, grad_x = walk.from_output(segment, z, grad_z, replays)
                drift = _drift(arrived, x)
                if not drift <= segment.drift_bound:
                    segment.inexact.add(segment.first)
                    _warn(segment, _inputs(segment, x, context, replays), z, context, replays)
                    walk = _Walk(context, grad_log_det, ctx.parameters)
            if segment.first in segment.inexact:
                grad_x = walk.from_inputs(segment, _inputs(segment, x, context, replays), grad_z, replays)
        return None, grad_x, walk.grad_context, grad_log_det, *walk.grads.values()


class _Walk:
    """The gradients that a walk back through a segment gathers."""

    def __init__(self, context: Tensor | None, grad_log_det: Tensor, parameters: tuple[nn.Parameter, ...]) -> None:
        self.context, self.grad_log_det = context, grad_log_det
        self.grad_context: Tensor | None = None
        self.grads: dict[nn.Parameter, Tensor | None] = dict.fromkeys(parameters)

    def from_output(self, segment: Segment, z: Tensor, grad: Tensor, replays: list[Callable]) -> tuple[Tensor, Tensor]:
        """(the input as the inverses give it, its gradient)."""
        for layer, replay in zip(reversed(segment.layers), reversed(replays), strict=True):
            own = self._own(layer)
            z, grad, *rest = layer.backward_from_output(z, self.context, grad, self.grad_log_det, own, replay)
            self._add(own, *rest)
        return z, grad

    def from_inputs(self, segment: Segment, inputs: list[Tensor], grad: Tensor, replays: list[Callable]) -> Tensor:
        """The gradient of the segment's input, from the input of every layer."""
        for layer, replay in zip(reversed(segment.layers), reversed(replays), strict=True):
            own = self._own(layer)
            grad, *rest = layer.backward_from_input(inputs.pop(), self.context, grad, self.grad_log_det, own, replay)
            self._add(own, *rest)
        return grad

    def _own(self, layer: Bijection) -> list[nn.Parameter]:
        return [parameter for parameter in layer.parameters() if parameter in self.grads]

    def _add(self, parameters: list[nn.Parameter], grad_context: Tensor | None, grads: list[Tensor | None]) -> None:
        self.grad_context = _sum(self.grad_context, grad_context)
        for parameter, grad in zip(parameters, grads, strict=True):
            self.grads[parameter] = _sum(self.grads[parameter], grad)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class _Moment:
    """What the layers' forward depended on besides tensors: random states and autocast."""

    def __init__(self, device: torch.device) -> None:
        kind = device.type
        self.device = device
        self.autocast = [
            (each, torch.is_autocast_enabled(each), torch.get_autocast_dtype(each)) for each in {kind, "cpu"}
        ]
        self.states: list[tuple[Tensor, ...]] = []

    def stash_random_state(self) -> None:
        """Before each layer; kept only where the layer before drew something."""
        state = self._random_state()
        if self.states and all(map(torch.equal, state, self.states[-1])):
            state = self.states[-1]
        self.states.append(state)

    @contextmanager
    def again(self, layers) -> Iterator[list[Callable[[], None]]]:
        """Restores autocast and keeps batch statistics and the random state; yields what replays each layer's draws."""
        devices = [self.device] if self.device.type == "cuda" else []
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices))
            for kind, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, enabled=enabled, dtype=dtype))
            for layer in layers:
                stack.enter_context(kept_statistics(layer))
            yield [lambda state=state: self._set_random_state(state) for state in self.states]

    def _random_state(self) -> tuple[Tensor, ...]:
        cpu = torch.get_rng_state()
        return (cpu, torch.cuda.get_rng_state(self.device)) if self.device.type == "cuda" else (cpu,)

    def _set_random_state(self, state: tuple[Tensor, ...]) -> None:
        torch.set_rng_state(state[0])
        if len(state) > 1:
            torch.cuda.set_rng_state(state[1], self.device)


@contextmanager
def kept_statistics(module: nn.Module | None) -> Iterator[None]:
    """Batch normalisation inside computes as before and leaves its running statistics alone."""
    modules = module.modules() if isinstance(module, nn.Module) else ()
    kept = [(each, each.momentum, each.num_batches_tracked) for each in modules
            if isinstance(each, nn.modules.batchnorm._BatchNorm) and each.training and each.track_running_stats]
    try:
        for each, _, _ in kept:
            each.momentum, each.num_batches_tracked = 0.0, None
        yield
    finally:
        for each, momentum, batches in kept:
            each.momentum, each.num_batches_tracked = momentum, batches


def checkpointed(function: Callable, *arguments: Tensor) -> Tensor | tuple[Tensor, ...]:
    """function(*arguments), whose inside is recomputed in backward from the arguments."""
    module = function if isinstance(function, nn.Module) else None
    return torch.utils.checkpoint.checkpoint(
        function, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), kept_statistics(module)))


@torch.no_grad()
def _inputs(segment: Segment, x: Tensor, context: Tensor | None, replays: list[Callable]) -> list[Tensor]:
    """The input of every layer, from the segment's."""
    inputs = [x]
    for layer, replay in list(zip(segment.layers, replays, strict=True))[:-1]:
        replay()
        inputs.append(layer(inputs[-1], context)[0])
    return inputs


def _drift(recomputed: Tensor, kept: Tensor) -> float:
    """|recomputed - kept| / |kept| in the Euclidean norm; NaN if either is not finite."""
    if kept.numel() == 0:
        return 0.0
    error, size = (torch.linalg.vector_norm(each, dtype=torch.float64) for each in (recomputed - kept, kept))
    return float(error / size.clamp_min(torch.finfo(torch.float64).tiny))


@torch.no_grad()
def _warn(segment: Segment, inputs: list[Tensor], z: Tensor, context: Tensor | None, replays: list[Callable]) -> None:
    """Names the layer whose inverse, on its own, returns least exactly to its input."""
    drifts = []
    for layer, replay, x, output in zip(segment.layers, replays, inputs, [*inputs[1:], z], strict=True):
        replay()
        drifts.append(_drift(layer.inverse(output, context)[0], x))
    worst = max(range(len(drifts)), key=lambda index: math.inf if math.isnan(drifts[index]) else drifts[index])
    first, last = segment.first, segment.first + len(drifts) - 1
    warnings.warn(f"FlowSequential: layers {first} to {last} return to their input with a relative error above "
                  f"{segment.drift_bound:.1e}, and keep their inputs from now on, which takes more memory; least exact "
                  f"by itself is the inverse of layer {first + worst} ({type(segment.layers[worst]).__name__}), "
                  f"{drifts[worst]:.1e}", stacklevel=2)
