"""nflows: sampling in the dtype of a flow's parameters, where nflows draws float32, which a float64 flow refuses."""

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
        """(samples, the noise that they are made of, log_det): [count, ...], or of contexts [contexts, count, ...],
        but the noise [contexts * count, ...]."""
        context, base = self._embedding_net(context), self._distribution
        dtype = next((each.dtype for each in self._transform.parameters() if each.is_floating_point()), None)
        if context is None:
            noise = torch.randn(count, *base._shape, dtype=dtype, device=base._log_z.device)
            samples, log_det = self._transform.inverse(noise, context=None)
            return samples, noise, log_det
        context = torch.as_tensor(context)
        noise = torch.randn(len(context) * count, *base._shape, dtype=dtype, device=context.device)
        samples, log_det = self._transform.inverse(noise, context=context.repeat_interleave(count, 0))
        return samples.unflatten(0, (len(context), count)), noise, log_det.unflatten(0, (len(context), count))


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
