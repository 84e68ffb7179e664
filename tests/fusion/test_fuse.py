"""`fuse`, `unfuse` and `supported_layers`: what they say, refuse and leave alone."""

import copy
import importlib.metadata
import logging
import re
import subprocess
import sys

import pytest
import torch
from models import Net
from peers import nflows, normflows
from torch import nn

import fastflow
from fastflow.fusion import layer, swap
from fastflow.fusion.layer import digest, is_fused

transforms = nflows.transforms


def coupling(net=Net) -> nn.Module:
    return transforms.AffineCouplingTransform([0, 1, 0, 1, 0, 1], net)


def block() -> nn.Module:
    return normflows.flows.AffineCouplingBlock(Net(3, 6))


def reason(module: nn.Module) -> str:
    return swap.survey(module)[0].reason


def test_the_log_names_what_was_fused_and_what_was_left(caplog):
    model = transforms.CompositeTransform([coupling(), transforms.BatchNorm(6)])
    with caplog.at_level(logging.INFO, logger="fastflow"):
        assert fastflow.fuse(model) is model
    assert caplog.messages == [
        "fuse: 1 of 2 layers of the flow are fused, and 0 conditioners",
        "fuse: _transforms.0 (AffineCouplingTransform) is fused",
        "fuse: _transforms.1 (BatchNorm) is left: fastflow has no kernel for it",
    ]


def test_a_single_layer_is_a_model_too(caplog):
    with caplog.at_level(logging.INFO, logger="fastflow"):
        layer = fastflow.fuse(coupling())
    assert is_fused(layer)
    assert "the model itself" in caplog.text


def test_a_subclass_is_left():
    class Mine(transforms.AffineCouplingTransform):
        def _scale_and_shift(self, transform_params):
            scale, shift = super()._scale_and_shift(transform_params)
            return 2 * scale, shift

    assert reason(Mine([0, 1], Net)) == "it is a subclass of AffineCouplingTransform"


def test_a_class_of_the_name_with_other_code_is_left():
    Mine = type("AffineCouplingTransform", (transforms.AffineCouplingTransform,), {
        "_scale_and_shift": lambda self, transform_params: (1, 2)})
    assert reason(Mine([0, 1], Net)) == "its code is not that of a known release of nflows"


def test_a_copy_of_a_library_is_served_like_the_original():
    Vendored = type("AffineCouplingTransform", (transforms.AffineCouplingTransform,), {"__module__": "vendored.flows"})
    layer = fastflow.fuse(Vendored([0, 1], Net))
    assert is_fused(layer)
    assert isinstance(layer, Vendored)


def test_a_method_replaced_on_the_instance_is_left():
    layer = coupling()
    layer.forward = layer.inverse
    assert reason(layer) == "its forward was replaced on the instance"


def test_an_unknown_layer_of_a_library_is_listed_and_other_modules_are_not():
    assert reason(transforms.Sigmoid()) == "fastflow has no kernel for it"
    assert swap.survey(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []


def test_parts_with_hooks_are_called_and_so_left():
    model = block()
    model.flows[0].register_forward_hook(lambda *_: None)
    found = {each.name: each.reason for each in swap.survey(fastflow.fuse(model))}
    assert found["the model itself"] == "flows.0 has a hook or a forward of its own, which would not be called"
    assert found["flows.1"] == ""


def test_a_fused_layer_that_changed_is_refused():
    model = fastflow.fuse(nn.Sequential(block()))
    model[0].flows[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=re.escape("fuse: 0 (AffineCouplingBlock) is fused and was changed since: "
                                                   "flows.0 has a hook")):
        fastflow.fuse(model)
    assert not any(is_fused(each) for each in fastflow.unfuse(model).modules())


def test_layers_added_later_are_fused_by_the_next_call():
    model = fastflow.fuse(nn.Sequential(block()))
    model.append(block())
    assert all(map(is_fused, fastflow.fuse(model)))


def test_a_compiled_model_is_refused():
    for model in (torch.compile(coupling()), nn.Sequential(torch.compile(coupling()))):
        for function in (fastflow.fuse, fastflow.unfuse):
            with pytest.raises(ValueError, match=r"is compiled, expected the model as it was: (un)?fuse it first"):
                function(model)


def test_a_model_without_values_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(transforms.ActNorm(4))
    with pytest.raises(ValueError, match=re.escape("fuse: 0.log_scale is on the meta device, expected values")):
        fastflow.fuse(model)


@pytest.mark.parametrize("wrong", [None, coupling, [coupling()]])
def test_what_is_no_module_is_refused(wrong):
    with pytest.raises(TypeError, match=f"fuse: module is {type(wrong).__name__}, expected an nn.Module"):
        fastflow.fuse(wrong)


def test_an_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="fuse: scope is 'model', expected 'layer'"):
        fastflow.fuse(coupling(), scope="model")


def test_an_untested_release_is_warned_of_once(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    swap._warn_of_untested.cache_clear()
    with pytest.warns(UserWarning, match=re.escape("fuse: nflows is 9.9, tested with 0.14")) as caught:
        fastflow.fuse(nn.Sequential(coupling(), coupling(), transforms.RandomPermutation(6)))  # two modules of nflows
    swap._warn_of_untested.cache_clear()
    assert len(caught) == 1


def test_the_table_names_every_layer_once():
    lines = fastflow.supported_layers().splitlines()
    assert lines[0].split() == ["library", "layer", "served"]
    keys = [tuple(line.split()[:2]) for line in lines[1:]]
    assert keys == [*((each.library, each.name) for each in swap.LAYERS), ("torch", "Sequential")]
    assert all(each.covers for each in swap.LAYERS)


def test_every_kind_of_layer_is_recognised_in_the_release_that_is_installed():
    homes = [sys.modules[name] for name in sorted(sys.modules) if name.startswith(tuple(swap.TESTED))]
    for known in swap.LAYERS:
        classes = {getattr(home, known.name) for home in homes if hasattr(home, known.name)
                   and home.__name__.startswith(known.library)}
        variants = [each for each in swap.LAYERS if each[:2] == known[:2]]  # of other releases
        assert any(digest(cls, each.methods) in each.digests for each in variants for cls in classes), known.name


def test_comments_layout_and_docstrings_do_not_change_what_a_layer_is():
    class Terse:
        def double(self, x): return 2*x

    class Wordy:
        def double(self, x):
            """Twice x."""
            return 2 * x  # not 3

    class Other:
        def double(self, x):
            return 3 * x

    assert digest(Terse, ("double",)) == digest(Wordy, ("double",)) != digest(Other, ("double",))
    assert digest(Terse, ("absent",)) == digest(int, ("bit_length",)) == ""


def test_a_conditioner_that_writes_to_its_input_is_an_error():
    layer = fastflow.fuse(coupling(lambda inputs, outputs: Writes(inputs, outputs)))
    with pytest.raises(RuntimeError, match="fuse: a conditioner writes to its input in place"):
        layer(torch.randn(4, 6))


class Writes(Net):
    def forward(self, x, context=None):
        return super().forward(x.mul_(2))


def test_index_buffers_follow_the_layer_and_stay_out_of_the_state():
    layer = fastflow.fuse(transforms.AffineCouplingTransform([1, 0, 0, 1, 1, 0], Net))
    assert layer._fused_order.tolist() == [1, 2, 5, 0, 3, 4]
    assert not any("_fused" in name for name in layer.state_dict())
    with torch.device("meta"):
        assert layer.to("meta")._fused_order.is_meta


def test_loading_a_state_looks_at_the_layer_again():
    one, other = coupling(), transforms.AffineCouplingTransform([1, 0, 1, 0, 1, 0], Net)
    fastflow.fuse(one).load_state_dict(other.state_dict())
    x = torch.randn(5, 6)
    torch.testing.assert_close(one(x), other(x))


def test_unfused_and_fused_copies_do_not_share_their_class():
    model = coupling()
    fused = fastflow.fuse(copy.deepcopy(model))
    assert not is_fused(model)
    assert type(fused) is not type(model)
    assert type(fused) is type(fastflow.fuse(coupling()))
    assert layer.original_class(fused) is transforms.AffineCouplingTransform


def test_an_import_brings_neither_peer_libraries_nor_compilers():
    code = ("import sys, fastflow; print([name for name in ('nflows', 'normflows', 'FrEIA', 'zuko', 'torch._dynamo', "
            "'triton') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
