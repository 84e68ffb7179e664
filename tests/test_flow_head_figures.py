"""`benchmarks/flow_head.py`: the batch-repeated formulation is the head, and the verdicts follow from what is found."""

import flow_head
import pytest
import torch
from flow_head import Repeated, check, measured, started_head, verdicts

from fastflow.bench import malloc

SMALL = {"features": 12, "levels": 2, "steps": 1, "hidden": 8, "blocks": 1}


@pytest.fixture(scope="module")
def head():
    return started_head(3, **SMALL)


def test_the_repeated_batch_is_the_head(head):
    head, z = started_head(3, **SMALL).double(), torch.randn(5, 12, dtype=torch.float64)
    own, repeated = head.marginal(z), Repeated(head)(z)
    torch.testing.assert_close(repeated, own)
    grads = (torch.autograd.grad(marginal.sum(), list(head.parameters())) for marginal in (own, repeated))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_head_is_checked_before_it_is_timed(head, precision, monkeypatch):
    assert check(head, torch.randn(40, 12), precision).startswith(f"{precision}: error ")
    marginal = head.marginal
    monkeypatch.setattr(head, "marginal", lambda z: marginal(z) + 100)
    with pytest.raises(SystemExit, match="expected at most twice as much"):
        check(head, torch.randn(40, 12), precision)


def test_everything_is_measured_but_what_is_too_large(head, monkeypatch):
    found = measured(head, torch.randn(4, 12), ["fp32", "bf16"], 0.01, compiling=False)
    assert set(found["forward"]) == {"head fp32", "head bf16", "repeated fp32", "repeated bf16"}
    assert set(found["training"]) == {"head fp32", "repeated fp32"}
    gradients = sum(parameter.nbytes for parameter in head.parameters()) / 1e6
    for values in found["training"].values():
        assert values["peak MB"] == pytest.approx(values["live MB"] + gradients)
    monkeypatch.setattr(flow_head, "REPEATED_PAIRS", 11)
    assert set(measured(head, torch.randn(4, 12), ["fp32"], 0.01, compiling=False)["forward"]) == {"head fp32"}


def test_verdicts_of_a_cpu():
    found = {
        "forward": {"head fp32": {"seconds": 0.2}, "compiled fp32": {"seconds": 0.25}},
        "training": {"head fp32": {"seconds": 1.5, "live MB": 40.0},
                     "repeated fp32": {"seconds": 1.0, "live MB": 402.0}},
        "scratch": {"head fp32": {"MB": 2.0}},
    }
    assert list(verdicts(("cpu", 256, 10), found)) == [
        "forward fp32, times compile's speed: 1.25 >= 1.2 reached",
        "forward bf16, times fp32 compile's: not measured",
        "forward, scratch in MB: 2 <= 2.5 reached",
        "training, times less live memory: 10.1 >= 8 reached",
        "training, times repeated's time: 1.5 <= 1.35 missed",
    ]
    assert list(verdicts(("cpu", 16, 10), found)) == []


def test_verdicts_of_a_gpu():
    found = {"training": {
        "head fp32": {"seconds": 1.0, "live MB": 30.0, "peak MB": 19e3},
        "repeated fp32": {"seconds": 4.0, "live MB": 400.0}, "compiled fp32": {"seconds": 2.5}}}
    assert [line.rpartition(" ")[2] for line in verdicts(("cuda", 256, 10), found)] == [
        "missed", "reached", "reached", "measured", "measured", "measured"]
    assert [line.rpartition(" ")[2] for line in verdicts(("cuda", 4096, 10), found)][:3] == ["reached"] * 3
    assert next(verdicts(("cuda", 4096, 1000), found)).endswith("1.9e+04 <= 20000 reached")


@pytest.mark.skipif(malloc.platform.libc_ver()[0] != "glibc", reason="the allocator is not that of glibc")
def test_scratch_is_that_of_the_whole_head(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", ":".join(f"{name}={value}" for name, value in malloc._TUNABLES.items()))
    needed = flow_head.in_fresh_process(flow_head.scratch_here, 8, 2, 1, "fp32")
    assert 0 < needed < 64e6  # less than the weights twice
