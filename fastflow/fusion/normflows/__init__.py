"""normflows 1.7 (Stimper et al. 2023, https://github.com/VincentStimper/normalizing-flows): layers that are fused."""

from fastflow.fusion.normflows import (
    autoregressive,
    couplings,
    distributions,
    masked,
    mixing,
    models,
    normalization,
    reshape,
)

LAYERS = (*couplings.LAYERS, *masked.LAYERS, *normalization.LAYERS, *mixing.LAYERS, *reshape.LAYERS,
          *autoregressive.LAYERS, *distributions.LAYERS, *models.LAYERS)
