"""Affine autoregressive layers: z_i = x_i c(a_i) + t_i, where a masked network makes (a, t)_i of x_1 ... x_{i-1}.

One direction is a pass of the network. The other gets to know x one feature after the other, for which the libraries
take a pass of the whole network each; `incremental` computes each time only what is new, one pass altogether.
"""

import logging
from functools import partial

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.fusion.incremental import Staged, solve_by_passes, solve_by_stages
from fastflow.fusion.layer import Arithmetic, keep, original_class
from fastflow.fusion.masked_network import Network, Unsupported, evaluate, make_plan
from fastflow.fusion.univariate import Univariate
from fastflow.ops._define import under_transform

log = logging.getLogger("fastflow")

# Passes multiply more, and every stage costs some calls however small it is. Both find the same x, and where they cross
# they take equally long, so that rough bounds do.
FEW_MULTIPLICATIONS = 8e6  # that passes make beyond those of stages: below, passes
MANY_STAGES = 10  # from here on always stages where gradients are recorded, which go back through every pass


class Autoregressive(Arithmetic):
    """What the layers of all libraries share; theirs are `_condition`, `_network` and the directions' names."""

    def _condition(self, x: Tensor, context: Tensor | None) -> Tensor:
        """A call of the conditioner: the parameters [B, features * parameters]."""
        raise NotImplementedError

    def _network(self, context: Tensor | None) -> Network:
        """The same, as nodes. Raises Unsupported."""
        raise NotImplementedError

    def _keep_plan(self, univariate: Univariate, features: int, passes: int, context: Tensor | None = None) -> None:
        """For `prepare`: looks at the masks. `passes` is how many the library takes for the inverse, `context` is one
        that the network takes."""
        try:
            plan, orders = make_plan(self._network(context), features)
            if plan.stages > passes:
                raise Unsupported(f"its masks need {plan.stages} passes, and it takes {passes}")
        except Unsupported as reason:
            plan, orders = None, None
            log.info("fuse: the inverse of a %s takes passes of its whole network, as before: %s",
                     original_class(self).__name__, reason)
        for name, value in (("univariate", univariate), ("passes", passes), ("plan", plan), ("orders", orders)):
            keep(self, name, value)

    def _inverted(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x, log_det) of z [B, features]."""
        return self._fused_univariate(z, self._condition_inverse(z, context), inverse=True)

    def _condition_inverse(self, z: Tensor, context: Tensor | None) -> Tensor:
        """What `_condition` gives for the x of z."""
        plan, univariate = self._fused_plan, self._fused_univariate
        conditioner, passes = partial(self._condition, context=context), self._fused_passes
        if plan is None:
            return solve_by_passes(conditioner, univariate, z, passes)
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or under_transform()
        # Under autocast another order of sums would round to other 16-bit numbers: no inverse of what was computed.
        if traced or torch.is_autocast_enabled(z.device.type) or plan.stages == 1:
            return solve_by_passes(conditioner, univariate, z, passes if self.training else plan.stages)
        try:
            network = self._network(context)
        except Unsupported:  # it was changed after it was fused
            return solve_by_passes(conditioner, univariate, z, passes)
        weights = network.weights
        if network.varies or z.dtype != weights[0].dtype or z.dim() != 2 or z.shape[1] != sum(plan.counts[0]):
            return solve_by_passes(conditioner, univariate, z, passes)
        vectors = [each if each is None or each.dim() == 1 else each.expand(len(z), -1) for each in network.vectors]
        if not len(z) or _backend.forced() == "reference" or _passes_pay(plan.stages, len(z), weights):
            return solve_by_passes(lambda x: evaluate(network.nodes, weights, vectors, x)[-1], univariate, z,
                                   plan.stages)
        orders = self._fused_orders.split(plan.sizes) if plan.sizes else ()
        return solve_by_stages(Staged(network.nodes, univariate, plan, orders), weights, vectors, z)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Modules load after the one that they are in, whose plan is made of their masks: these are loaded here."""
        for name, mask in self.named_buffers():
            given = state_dict.get(prefix + name)
            if name.endswith("mask") and isinstance(given, Tensor) and given.shape == mask.shape:
                mask.copy_(given)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _passes_pay(stages: int, rows: int, weights: list[Tensor]) -> bool:
    """Whether passes of the whole network take no longer than its stages, which take one, and one for the gradient."""
    recorded = torch.is_grad_enabled()
    more = (stages - 1 - recorded) * rows * sum(each.numel() for each in weights)
    return more < FEW_MULTIPLICATIONS and not (recorded and stages >= MANY_STAGES)
