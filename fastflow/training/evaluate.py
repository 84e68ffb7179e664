"""How good a model is on data, and with their labels."""

import math

import torch
from torch import Tensor, nn

from fastflow.models import TzK
from fastflow.models.class_bound import ClassBound
from fastflow.training.inputs import model_input
from fastflow.training.randomness import EVALUATION, EVALUATION_LATENT, uniform
from fastflow.training.tzk_likelihoods import conditional_bits
from fastflow.training.views import normal_numbers

ROWS = 512  # rows a forward pass
FIGURES = {  # what `evaluate` measures: title of its column, style
    "error": ("error %", ".2f"),
    "bits_per_dim": ("bits/dim", ".4f"),
    "nll": ("-log p(x)", ".4f"),
    "bits_per_dim_bound": ("bits/dim <=", ".4f"),
    "nll_bound": ("-log p(x) <=", ".4f"),
    "cross_entropy": ("-log p(y|x)", ".4f"),
}


def columns(figures: dict) -> dict[str, tuple[str, str]]:
    """{name: (title, style)} of those of `FIGURES` that were measured, and of the bits of a TzK's groups."""
    known = {name: column for name, column in FIGURES.items() if name in figures}
    return known | {name: (name.replace("_", " "), ".4f") for name in figures
                    if name.startswith("bits_") and name not in known}


def summary(figures: dict) -> str:
    """Error and density of `evaluate` in a line."""
    return ", ".join(f"{title} {figures[name]:{style}}" for name, (title, style) in columns(figures).items()
                     if name != "cross_entropy")


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, labels: Tensor, *, levels: int, seed: int,
             groups: Tensor | None = None) -> dict:
    """Scores a model on `x` [N, *shape], grey levels or (levels = 1) vectors, with `labels` int64 [N], on its device.

    Returns error (percent of rows), cross_entropy (mean -log p(y|x), nats) and confusion counts [true][predicted], all
    of p(y|x) at the middle of the grey levels, as `model.predict` has it; rows of label -1 count nothing there. And
    bits_per_dim of p(x), dequantised by noise that is keyed by (seed, row), or the mean -log p(x), nll, of vectors; of
    a `ClassBound` bounds of them, one draw of its latents a row, where binary pixels are what has the bits. A model
    without classes (K = 1) has these alone. Of a `TzK` on images also the bits of a pixel of each of its `groups` int64
    [N], given nothing, the group or the class: bits_GROUP, bits_GROUP_given_group, bits_GROUP_given_class. The same
    weights give the same numbers.
    """
    training = model.training
    model.eval()
    log_probs, log_posteriors = [], []
    for start in range(0, len(x), ROWS):
        part = x[start : start + ROWS]
        key = {"seed": seed, "step": 0, "rows": torch.arange(start, start + len(part), device=x.device)}
        noise = None if levels == 1 else uniform(part.shape, stream=EVALUATION, **key)
        score = _of_bound if isinstance(model, ClassBound) else _of_flow
        log_prob, log_posterior = score(model, part, noise, levels, key)
        log_probs.append(log_prob)
        log_posteriors.append(log_posterior)
    model.train(training)
    mean, classes = torch.cat(log_probs).double().mean().item(), log_posteriors[0].shape[1]
    if levels == 1:
        density = {"nll": -mean}
    else:
        if isinstance(model, ClassBound) and model.binary:
            levels = 1  # a binary pixel has a probability, not a density
        density = {"bits_per_dim": math.log2(levels) - mean / (math.prod(x.shape[1:]) * math.log(2.0))}
    if isinstance(model, TzK) and levels > 1:
        density |= _conditional(model, x, labels, groups, seed)
    if isinstance(model, ClassBound):
        density = {f"{name}_bound": value for name, value in density.items()}
    known = labels >= 0
    if classes == 1 or not known.any():
        return density
    log_posterior, labels = torch.cat(log_posteriors).double()[known], labels[known]
    predicted = log_posterior.argmax(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    return {
        "error": 100.0 * (predicted != labels).double().mean().item(),
        **density,
        "cross_entropy": -log_posterior.gather(1, labels[:, None]).mean().item(),
        "confusion": confusion.tolist(),
    }


def _of_flow(model: nn.Module, x: Tensor, noise: Tensor | None, levels: int, key: dict) -> tuple[Tensor, Tensor]:
    log_base, scores = model.class_scores(x, noise=noise)
    log_prob = log_base + scores.logsumexp(1)
    if scores.shape[1] > 1 and noise is not None:
        scores = model.class_scores(x)[1]
    return log_prob, scores.log_softmax(1)


def _conditional(model: TzK, x: Tensor, labels: Tensor, groups: Tensor | None, seed: int) -> dict[str, float]:
    rows = torch.arange(len(x), device=x.device)
    noise = uniform(x.shape, seed=seed, stream=EVALUATION, step=0, rows=rows)
    found = conditional_bits(model, x, labels, groups, noise, seed=seed)
    return {f"bits_{group}" + ("" if condition == "prior" else f"_given_{condition}"): bits
            for group, conditions in found.items() for condition, bits in conditions.items()}


def _of_bound(model: ClassBound, x: Tensor, noise: Tensor | None, levels: int, key: dict) -> tuple[Tensor, Tensor]:
    latent = normal_numbers(uniform((len(x), model.noise_features), stream=EVALUATION_LATENT, **key))
    return model.elbo(model_input(model, x, noise, levels), latent), model.log_q(model_input(model, x, None, levels))
