"""normflows 1.7 (Stimper et al. 2023, https://github.com/VincentStimper/normalizing-flows): layers that are fused."""

from fastflow.fusion.normflows import couplings

LAYERS = (*couplings.LAYERS,)
