"""FrEIA 0.2 (Ardizzone et al., https://github.com/vislearn/FrEIA): layers whose arithmetic is fused."""

from fastflow.fusion.freia import all_in_one, couplings, linear, mixture, normalization, reshapes

LAYERS = (*couplings.LAYERS, *all_in_one.LAYERS, *normalization.LAYERS, *linear.LAYERS, *reshapes.LAYERS,
          *mixture.LAYERS)
