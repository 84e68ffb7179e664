"""zuko 1.6 (Rozet et al., https://github.com/probabilists/zuko): layers whose arithmetic is fused."""

from fastflow.fusion.zuko import couplings

LAYERS = (*couplings.LAYERS,)
