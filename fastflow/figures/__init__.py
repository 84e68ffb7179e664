"""Pictures of a run, chosen by what its model can do: curves, samples, swaps, interpolations, latents, confusions."""

from fastflow.figures.draw import draw_figures
from fastflow.figures.probe import obfuscation_probe
from fastflow.figures.samples import draw_samples, save_samples

__all__ = ["draw_figures", "draw_samples", "obfuscation_probe", "save_samples"]
