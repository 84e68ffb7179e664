"""The base of every invertible layer, and the one way data-dependent parameters start."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Bijection(nn.Module):
    """An invertible map of batches [B, *shape] that tracks its log-determinant.

    forward(x, context=None, log_det=None) -> (z, log_det)      data to latent
    inverse(z, context=None, log_det=None) -> (x, log_det)      the exact inverse of the same function

    context is what a conditional layer reads besides x, [B, E] or [B, E, *spatial]; other layers ignore it. log_det [B]
    is the running sum of log|det| in nats, float32 (float64 for float64 x); None starts it at zero. It is never
    changed in place.
    """

    def forward(self, x: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} defines no inverse")

    def backward_from_output(
        self, z: Tensor, context: Tensor | None, grad_z: Tensor, grad_log_det: Tensor, parameters: list[nn.Parameter],
        replay: Callable[[], None],
    ) -> tuple[Tensor, Tensor | None, Tensor | None, list[Tensor | None]]:
        """(x, grad_x, grad_context, gradients of `parameters`) from z, for reversible training.

        replay() sets the random state to that before this layer's forward; a layer calls it before each computation
        that draws. Layers whose inverse shares work with their gradient override this.
        """
        replay()
        with torch.no_grad():
            x, _ = self.inverse(z, context)
        return x, *self.backward_from_input(x, context, grad_z, grad_log_det, parameters, replay)

    def backward_from_input(
        self, x: Tensor, context: Tensor | None, grad_z: Tensor, grad_log_det: Tensor, parameters: list[nn.Parameter],
        replay: Callable[[], None],
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
        """(grad_x, grad_context, gradients of `parameters`); arguments as in `backward_from_output`."""
        x, context = leaf(x), leaf(context)
        replay()
        with torch.enable_grad():
            outputs = self(x, context)
        grad_x, grad_context, *grads = gradients(outputs, (grad_z, grad_log_det), (x, context, *parameters))
        return grad_x, grad_context, grads

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one latent for one sample of `shape`; raises ValueError if the layer does not fit it."""
        return shape

    @torch.no_grad()
    def initialize(self, batch: Tensor, context: Tensor | None = None) -> None:
        """Runs the batch through once; every data-dependent layer inside starts from the input that it sees there.

        Those are the layers with a method `start_from(x)` and a buffer `initialized`. They start in the order in which
        forward reaches them, with dropout off. A layer that has started before, or was loaded, is left alone. If one
        refuses the batch, those that it had started are as they were.
        """
        modes = [(module, module.training) for module in self.modules()]
        before = []

        def start(module: nn.Module, inputs: tuple) -> None:
            if not module.initialized:  # a shared layer is reached again
                before.append((module, {name: value.clone() for name, value in module.state_dict().items()}))
                module.start_from(inputs[0])

        hooks = [module.register_forward_pre_hook(start) for module in self.modules()
                 if hasattr(module, "start_from") and not module.initialized]
        try:
            self.eval()
            self(batch, context)
        except BaseException:
            for module, state in before:
                module.load_state_dict(state)
            raise
        finally:
            for hook in hooks:
                hook.remove()
            for module, training in modes:
                module.training = training


def leaf(x: Tensor | None) -> Tensor | None:
    """The same values, from which autograd records."""
    return None if x is None else x.detach().requires_grad_(x.is_floating_point())


def gradients(outputs: Sequence[Tensor], grads: Sequence[Tensor], inputs: Sequence[Tensor | None],
              ) -> list[Tensor | None]:
    """The gradients of `inputs`, None for those that are absent or that no output depends on."""
    kept = [(output, grad) for output, grad in zip(outputs, grads, strict=True) if output.requires_grad]
    asked = [each for each in inputs if each is not None and each.requires_grad]
    if not kept or not asked:
        return [None] * len(inputs)
    outputs, grads = zip(*kept, strict=True)
    # Autocast chose the dtypes in forward; in backward it would round the products of those that it left alone.
    with torch.autocast(outputs[0].device.type, enabled=False):
        found = iter(torch.autograd.grad(outputs, asked, grads, allow_unused=True))
    return [next(found) if each is not None and each.requires_grad else None for each in inputs]
