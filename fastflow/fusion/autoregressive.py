"""Affine autoregressive layers: z_i = x_i c(a_i) + t_i, where a masked network makes (a, t)_i of x_1 ... x_{i-1}.

One direction is a pass of the network. The other gets to know x one feature after the other, for which the libraries
take a pass of the whole network each; `incremental` computes each time only what is new, one pass altogether.
"""

import logging
from functools import partial

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.fusion.incremental import Problem, passes, solve
from fastflow.fusion.layer import Arithmetic, keep, original_class
from fastflow.fusion.masked_network import Network, Unsupported, evaluate, plan
from fastflow.fusion.univariate import Univariate
from fastflow.ops._define import under_transform

log = logging.getLogger("fastflow")

FEW = 2  # stages for which passes take no longer


class Autoregressive(Arithmetic):
    """What the layers of all libraries share; theirs are `_condition`, `_network` and the directions' names."""

    def _condition(self, x: Tensor, context: Tensor | None) -> Tensor:
        """A call of the conditioner: the parameters [B, features * parameters]."""
        raise NotImplementedError

    def _network(self, context: Tensor | None) -> Network:
        """The same, as nodes. Raises Unsupported."""
        raise NotImplementedError

    def _keep_plan(self, univariate: Univariate, features: int, count: int) -> None:
        """For `prepare`: looks at the masks. `count` is how many passes the library takes for the inverse."""
        known, orders = None, None
        try:
            known, orders = plan(self._network(None), features)
            if known.stages > count:
                known = None
                raise Unsupported(f"its masks need {known.stages} passes, and it takes {count}")
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
        if torch.compiler.is_compiling() or under_transform():
            return passes(whole, univariate, z, known.stages)
        try:
            network = self._network(context)
        except Unsupported:  # it was changed after it was fused
            return passes(whole, univariate, z, count)
        dtype = network.weights[0].dtype
        if torch.is_autocast_enabled(z.device.type):
            dtype = torch.get_autocast_dtype(z.device.type)
        elif z.dtype != dtype:
            return passes(whole, univariate, z, count)
        if network.varies or z.dim() != 2 or z.shape[1] != sum(known.counts[0]):
            return passes(whole, univariate, z, count)
        weights = [each.to(dtype) for each in network.weights]
        vectors = [each if each is None else _per_row(each, z).to(dtype) for each in network.vectors]
        if known.stages <= FEW or not len(z) or _backend.forced() == "reference":
            return passes(lambda x: evaluate(network.nodes, weights, vectors, x)[-1], univariate, z, known.stages)
        with torch.autocast(z.device.type, enabled=False):
            orders = self._fused_orders.split(known.sizes) if known.sizes else ()
            return solve(Problem(known, orders, network.nodes, univariate), weights, vectors, z)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Modules load after the one that they are in, whose plan is made of their masks: these are loaded here."""
        for name, mask in self.named_buffers():
            given = state_dict.get(prefix + name)
            if name.endswith("mask") and isinstance(given, Tensor) and given.shape == mask.shape:
                mask.copy_(given)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _per_row(vector: Tensor, z: Tensor) -> Tensor:
    return vector if vector.dim() == 1 else vector.expand(len(z), -1)
