"""Fused models keep what the originals promise, and what those break."""

import copy
import warnings

import behaviours
import pytest
import torch
from agreement import assert_agrees, assert_keeps
from models import MODELS, Model

from fastflow.fusion import fuse
from fastflow.fusion.swap import survey

BY_NAME = {model.name: model for model in MODELS}


def outcome(behaviour, model: Model, module: torch.nn.Module) -> str:
    """Empty, or how the promise was broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            behaviour(model, module)
    except Exception as error:  # any failure of a peer's code counts
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("name", BY_NAME)
def test_only_the_layers_of_the_list_are_left(name):
    model = BY_NAME[name]
    module = fuse(behaviours.started(model))
    assert sorted({each.kind for each in survey(module) if each.reason}) == sorted(model.left)


@pytest.mark.parametrize("name", BY_NAME)
def test_density_and_inverse_agree_with_the_original(name):
    model = BY_NAME[name]
    module = behaviours.started(model)
    given = model.data(64)
    assert_agrees(module.train(), model.log_prob, *given, in_the_mean=True)
    if name not in behaviours.REPAIRED["decodes_what_it_encoded"]:
        with torch.no_grad():
            z = model.encode(copy.deepcopy(module).double().eval(), *given)[0]
        if isinstance(z, torch.Tensor):
            assert_agrees(module.eval(), model.decode, z, *given[1:], in_the_mean=True)


@pytest.mark.parametrize("name", BY_NAME)
def test_everything_else_stays(name):
    model = BY_NAME[name]
    module = behaviours.started(model).eval()
    assert_keeps(module, model.log_prob, *behaviours.data(model, module))


@pytest.mark.parametrize("behaviour", behaviours.BEHAVIOURS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("name", BY_NAME)
def test_promises(name, behaviour):
    model = BY_NAME[name]
    module = behaviours.started(model)
    fused = fuse(copy.deepcopy(module))
    broken = outcome(behaviour, model, module)
    assert bool(broken) or name not in behaviours.REPAIRED.get(behaviour.__name__, ()), "the original keeps it too"
    if not broken or name in behaviours.REPAIRED.get(behaviour.__name__, ()):
        assert outcome(behaviour, model, fused) == ""


@pytest.mark.parametrize(("behaviour", "name"), [(behaviour, name) for behaviour, names in behaviours.COMPILED.items()
                                                 for name in names])
def test_compiles_whole_only_when_fused(behaviour, name):
    model, promise = BY_NAME[name], getattr(behaviours, behaviour)
    module = behaviours.started(model)
    assert outcome(promise, model, copy.deepcopy(module)) != ""
    torch._dynamo.reset()
    assert outcome(promise, model, fuse(module)) == ""
