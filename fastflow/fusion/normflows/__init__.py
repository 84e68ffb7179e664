"""normflows 1.7 (Stimper et al. 2023, https://github.com/VincentStimper/normalizing-flows): layers that are fused."""

from fastflow.fusion.normflows import couplings, distributions, masked, normalization, reshape

LAYERS = (*couplings.LAYERS, *distributions.LAYERS, *masked.LAYERS, *normalization.LAYERS, *reshape.LAYERS)
