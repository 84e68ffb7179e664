"""nflows: sampling in the dtype of a flow's parameters, where nflows draws float32, which a float64 flow refuses."""

import math

import torch
from torch import Tensor, nn

from fastflow.fusion.layer import Arithmetic, Layer, digest


class Flow(Arithmetic):
    """Flow with a base of StandardNormal; a float32 flow draws the same numbers as before."""

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        samples, _, _ = self._drawn(num_samples, context)
        return samples

    def sample_and_log_prob(self, num_samples: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not isinstance(num_samples, int) or num_samples < 1:
            raise TypeError("Number of samples must be a positive integer.")
        samples, noise, log_det = self._drawn(num_samples, context)
        return samples, self._distribution.log_prob(noise).view(log_det.shape) - log_det

    def _drawn(self, count: int, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(samples, the noise that they are made of, log_det), batched as [count] or [contexts, count]; noise flat."""
        context, base, batch = self._embedding_net(context), self._distribution, (count,)
        device, dtype = base._log_z.device, next((each.dtype for each in self._transform.parameters()), None)
        if context is not None:
            context = torch.as_tensor(context)
            device, batch = context.device, (len(context), count)
            context = context.repeat_interleave(count, 0)
        noise = torch.randn(math.prod(batch), *base._shape, dtype=dtype, device=device)
        x, log_det = self._transform.inverse(noise, context=context)
        return x.reshape(*batch, *x.shape[1:]), noise, log_det.reshape(batch)


def _of_another_base(layer: nn.Module) -> str:
    base = layer._distribution
    known = type(base).__name__ == "StandardNormal" and digest(type(base), ("_sample", "_log_prob")) in _BASE_DIGESTS
    return "" if known else f"its base is {type(base).__name__}, which draws in a dtype of its own"


_CODE = ("_sample", "sample_and_log_prob", "sample")
_BASE_DIGESTS = ("9ab31466bd1f",)
LAYERS = tuple(
    Layer("nflows", name, Flow, _CODE, ("1b1aef5d37da", "aac78070a07d"), _of_another_base,
          "sampling with a base of StandardNormal in any dtype, context, an embedding net")
    for name in ("Flow", "SimpleRealNVP", "MaskedAutoregressiveFlow"))
