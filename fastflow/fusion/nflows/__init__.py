"""nflows 0.14 (Durkan et al., https://github.com/bayesiains/nflows): layers whose arithmetic is fused."""

from fastflow.fusion.nflows import autoregressive, couplings, normalization

LAYERS = (*couplings.LAYERS, *normalization.LAYERS, *autoregressive.LAYERS)
