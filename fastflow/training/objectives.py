"""What a step minimises, one function a family of models."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastflow.models.class_bound import classification_weight
from fastflow.training.batches import Batch
from fastflow.training.config import Config
from fastflow.training.consistency import consistency_loss, ramped
from fastflow.training.em import responsibilities
from fastflow.training.inputs import model_input
from fastflow.training.loss import Parts, likelihood_loss, mean_of, view_loss
from fastflow.training.randomness import LATENT
from fastflow.training.state import TrainingState
from fastflow.training.views import normal_numbers

Objective = Callable[[TrainingState, Batch, Config], tuple[Tensor, Parts]]


def likelihood(state: TrainingState, batch: Batch, config: Config) -> tuple[Tensor, Parts]:
    """The objective of every exact system: SCNF and FlowGMM, by gradients or by EM, with terms of classes and views.

    Another objective is another function of this signature: it returns the scalar loss and what to log of it (0-d
    tensors, no gradient), and reads nothing back to the host.
    """
    model, loss = state.model, config.loss
    held = responsibilities(state, batch, loss) if loss.uses_em else None
    guess = None
    if loss.consistency:
        with torch.no_grad():  # first: batch normalisation's statistics end with those of x
            guess = model.class_scores(batch.other, noise=batch.other_noise)[1]
    if batch.views is None:
        log_base, scores = model.class_scores(batch.x, noise=batch.noise)
        total, parts = likelihood_loss(log_base, scores, batch.labels, loss, held)
    else:
        x = torch.cat([batch.x, batch.views])
        noise = None if batch.noise is None else torch.cat([batch.noise, batch.view_noise])
        (log_base, _), (scores, of_views) = (part.tensor_split(2) for part in model.class_scores(x, noise=noise))
        total, parts = likelihood_loss(log_base, scores, batch.labels, loss, held)
        more, more_parts = view_loss(scores, of_views, batch.labels, loss, state.step)
        total, parts = total + more, parts | more_parts
    if guess is not None:
        more, more_parts = consistency_loss(log_base, scores, model.head.prior.log_prob(), guess,
                                            kind=loss.consistency_kind, threshold=loss.consistency_threshold)
        total, parts = total + ramped(loss.consistency, state.step, loss.consistency_ramp) * more, parts | more_parts
    return total, parts


def bound(state: TrainingState, batch: Batch, config: Config) -> tuple[Tensor, Parts]:
    """The objective of M1, M2 and M1+M2 for a row of the training set: an estimate, without bias, of

        (-sum bound + classification_weight * sum -log q(y | x) + weight_penalty) / rows

    the sums going over all rows, the second over the labelled ones.
    Source: Kingma et al. 2014 (arXiv 1406.5298), eq. 9.
    """
    model, source, labels = state.model, batch.source, batch.labels
    x = model_input(model, batch.x, batch.noise, source.levels)
    noise = normal_numbers(batch.uniform((len(labels), model.noise_features), LATENT))
    bounds, cross_entropy = model.training_terms(x, noise, labels)
    known, labelled, unlabelled = labels >= 0, len(source.split.labelled), len(source.split.unlabelled)
    rows = labelled + unlabelled
    weight_known = labelled / rows / source.share if labelled and source.share else 0.0
    weight_unknown = unlabelled / rows / (1 - source.share) if unlabelled else 0.0
    alpha = classification_weight(rows, labelled, config.loss.alpha)
    total = torch.where(known, weight_known * (alpha * cross_entropy - bounds), -weight_unknown * bounds).mean()
    if config.loss.weight_prior:
        total = total + model.weight_penalty() / rows
    parts = {"bound_unlabelled": mean_of(bounds, ~known).detach()}
    if model.classes > 1:
        parts |= {"bound_labelled": mean_of(bounds, known).detach(),
                  "cross_entropy": mean_of(cross_entropy, known).detach()}
    return total, parts


def compound(state: TrainingState, batch: Batch, config: Config) -> tuple[Tensor, Parts]:
    """The objective of TzK, see `TzK.terms`."""
    model = state.model
    kappa = model.observed(batch.labels, batch.groups)
    styles = {name: normal_numbers(batch.uniform((len(batch.labels), type_.style), LATENT + place))
              for place, (name, type_) in enumerate(model.knowledge.items())}
    terms = model.terms(batch.x, kappa, noise=batch.noise, style_noise=styles)
    return sum(terms.values()), {name: term.detach() for name, term in terms.items()}


OBJECTIVES = {"scnf": likelihood, "flowgmm": likelihood, "m1": bound, "m2": bound, "m1m2": bound, "tzk": compound}
