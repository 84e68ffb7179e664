"""Bits of an image given nothing, its data set, or its class: the figures that TzK is judged by."""

import torch
from torch import Tensor

from fastflow.models import TzK

_ROWS = 256  # images a forward pass


@torch.no_grad()
def conditional_bits(model: TzK, images: Tensor, labels: Tensor, groups: Tensor | None, noise: Tensor, *,
                     draws: int = 16, seed: int = 0) -> dict[str, dict[str, float]]:
    """Mean bits of each pixel, padding included, over the images of a group: {group: {condition: bits}}.

    images  uint8 [N, C, H, W]; labels int64 [N], -1 where there is none; groups int64 [N]; noise [N, C, H, W] in [0, 1)
    groups  None for a model without groups, which has all images in one group, "all"
    draws   of C for an image, made by `seed`; fewer make the conditional bits larger on average, never smaller

    Conditions: "prior", p(T); "group", p(T | kappa = 1) of the image's own group, if the model has groups; "class",
    that of its own class, over the images with a label, if there are any. Groups without images are left out.
    """
    training = model.training
    model.eval()
    generator = torch.Generator(images.device).manual_seed(seed)
    groups = torch.zeros_like(labels) if groups is None else groups

    def log_probs(rows: Tensor, name: str | None = None) -> Tensor:
        parts = []
        for part in rows.split(_ROWS):
            x, u = images[part], noise[part]
            parts.append(model.log_prob(x, u) if name is None else
                         model.log_conditional(x, name, noise=u, draws=draws, generator=generator))
        return torch.cat(parts)

    figures = {}
    for number, group in enumerate(model.group_types or ["all"]):
        rows = (groups == number).nonzero()[:, 0]
        if not len(rows):
            continue
        found = {"prior": log_probs(rows)}
        if model.group_types:
            found["group"] = log_probs(rows, group)
        known = [(name, rows[labels[rows] == k]) for k, name in enumerate(model.class_types)]
        if any(len(own) for _, own in known):
            found["class"] = torch.cat([log_probs(own, name) for name, own in known if len(own)])
        figures[group] = {condition: model.bits_per_pixel(found[condition].double().mean()).item()
                          for condition in found}
    model.train(training)
    return figures
