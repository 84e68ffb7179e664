"""How good a model is on images, and with their labels."""

import math

import torch
from torch import Tensor, nn

from fastflow.training.randomness import EVALUATION, uniform

ROWS = 512  # images a forward pass


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, *, levels: int, seed: int) -> dict:
    """Scores a model on `images` uint8 [N, C, H, W] with `labels` int64 [N], on the model's device.

    Returns error (percent of images), cross_entropy (mean -log p(y|x), nats) and confusion counts [true][predicted],
    all of p(y|x) at the middle of the grey levels, as `model.predict` has it; and bits_per_dim of p(x), dequantised by
    noise that is keyed by (seed, image). A model without classes (K = 1) has bits_per_dim alone. The same weights give
    the same numbers.
    """
    training = model.training
    model.eval()
    log_probs, log_posteriors = [], []
    for start in range(0, len(images), ROWS):
        part = images[start : start + ROWS]
        rows = torch.arange(start, start + len(part), device=images.device)
        noise = uniform(part.shape, seed=seed, stream=EVALUATION, step=0, rows=rows)
        log_base, scores = model.class_scores(part, noise=noise)
        log_probs.append(log_base + scores.logsumexp(1))
        if scores.shape[1] > 1:
            log_posteriors.append(model.class_scores(part)[1].log_softmax(1))
    model.train(training)
    mean = torch.cat(log_probs).double().mean().item()
    bits_per_dim = math.log2(levels) - mean / (math.prod(images.shape[1:]) * math.log(2.0))
    if not log_posteriors:
        return {"bits_per_dim": bits_per_dim}
    log_posterior = torch.cat(log_posteriors).double()
    classes = log_posterior.shape[1]
    predicted = log_posterior.argmax(1)
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    return {
        "error": 100.0 * (predicted != labels).double().mean().item(),
        "bits_per_dim": bits_per_dim,
        "cross_entropy": -log_posterior.gather(1, labels[:, None]).mean().item(),
        "confusion": confusion.tolist(),
    }
