"""FrEIA 0.2 (Ardizzone et al., https://github.com/vislearn/FrEIA): layers whose arithmetic is fused."""

from fastflow.fusion.freia import couplings

LAYERS = (*couplings.LAYERS,)
