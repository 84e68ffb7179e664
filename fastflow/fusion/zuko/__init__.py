"""zuko 1.6 (Rozet et al., https://github.com/probabilists/zuko): layers whose arithmetic is fused.

A lazy layer builds a functional transform or distribution in each call; a fused one builds a subclass of the same.
"""

from fastflow.fusion.zuko import autoregressive, composed, couplings, distributions, elementwise, unconditional

LAYERS = (*couplings.LAYERS, *elementwise.LAYERS, *unconditional.LAYERS, *composed.LAYERS, *distributions.LAYERS,
          *autoregressive.LAYERS)
