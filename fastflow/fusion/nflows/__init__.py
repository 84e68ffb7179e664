"""nflows 0.14 (Durkan et al., https://github.com/bayesiains/nflows): layers whose arithmetic is fused."""

from fastflow.fusion.nflows import autoregressive, couplings, flows, linear, multiscale, normalization, permutations

LAYERS = (*couplings.LAYERS, *normalization.LAYERS, *linear.LAYERS, *permutations.LAYERS, *multiscale.LAYERS,
          *autoregressive.LAYERS, *flows.LAYERS)
