"""Affine autoregressive layers: z_i = x_i c(a_i) + t_i, where a masked network makes (a, t)_i of x_1 ... x_{i-1}.

One direction is a pass of the network. The other gets to know x one feature after the other, for which the libraries
take a pass of the whole network each; `incremental` computes each time only what is new, one pass altogether.
"""

import logging
from functools import partial

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.fusion.incremental import Staged, passes, solve
from fastflow.fusion.layer import Arithmetic, keep, original_class
from fastflow.fusion.masked_network import Network, Unsupported, evaluate, plan
from fastflow.fusion.univariate import Univariate
from fastflow.ops._define import under_transform

log = logging.getLogger("fastflow")

# Multiplications of all passes up to which they take less than the walk through the stages does at least, and the
# number of stages from which their gradient takes longer whatever the size. Measured on a CPU, 2 to 64 features.
SMALL, MANY = 8e6, 10


class Autoregressive(Arithmetic):
    """What the layers of all libraries share; theirs are `_condition`, `_network` and the directions' names."""

    def _condition(self, x: Tensor, context: Tensor | None) -> Tensor:
        """A call of the conditioner: the parameters [B, features * parameters]."""
        raise NotImplementedError

    def _network(self, context: Tensor | None) -> Network:
        """The same, as nodes. Raises Unsupported."""
        raise NotImplementedError

    def _keep_plan(self, univariate: Univariate, features: int, count: int, context: Tensor | None = None) -> None:
        """For `prepare`: looks at the masks. `count` is how many passes the library takes for the inverse, `context`
        one that the network takes."""
        known, orders = None, None
        try:
            found, orders = plan(self._network(context), features)
            if found.stages > count:
                raise Unsupported(f"its masks need {found.stages} passes, and it takes {count}")
            known = found
        except Unsupported as reason:
            log.info("fuse: the inverse of a %s takes passes of its whole network, as before: %s",
                     original_class(self).__name__, reason)
        for name, value in (("univariate", univariate), ("count", count), ("plan", known), ("orders", orders)):
            keep(self, name, value)

    def _inverted(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x, log_det) of z [B, features]."""
        return self._fused_univariate(z, self._made(z, context), inverse=True)

    def _made(self, z: Tensor, context: Tensor | None) -> Tensor:
        known, univariate = self._fused_plan, self._fused_univariate
        whole, count = partial(self._condition, context=context), self._fused_count
        if known is None:
            return passes(whole, univariate, z, count)
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or under_transform()
        # Under autocast another order of sums would round to other 16-bit numbers: no inverse of what was computed.
        if traced or torch.is_autocast_enabled(z.device.type) or known.stages == 1:
            return passes(whole, univariate, z, count if self.training else known.stages)
        try:
            network = self._network(context)
        except Unsupported:  # it was changed after it was fused
            return passes(whole, univariate, z, count)
        if network.varies or z.dtype != network.weights[0].dtype or z.dim() != 2 or z.shape[1] != sum(known.counts[0]):
            return passes(whole, univariate, z, count)
        weights = network.weights
        vectors = [each if each is None or each.dim() == 1 else each.expand(len(z), -1) for each in network.vectors]
        if not len(z) or _backend.forced() == "reference" or _is_short(known.stages, len(z), weights):
            return passes(lambda x: evaluate(network.nodes, weights, vectors, x)[-1], univariate, z, known.stages)
        orders = self._fused_orders.split(known.sizes) if known.sizes else ()
        return solve(Staged(network.nodes, univariate, known, orders), weights, vectors, z)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Modules load after the one that they are in, whose plan is made of their masks: these are loaded here."""
        for name, mask in self.named_buffers():
            given = state_dict.get(prefix + name)
            if name.endswith("mask") and isinstance(given, Tensor) and given.shape == mask.shape:
                mask.copy_(given)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _is_short(stages: int, rows: int, weights: list[Tensor]) -> bool:
    """Whether passes of the whole network take no longer than its stages."""
    recorded = torch.is_grad_enabled()
    size = (stages - 1 - recorded) * rows * sum(each.numel() for each in weights)
    return size < SMALL and not (recorded and stages >= MANY)
