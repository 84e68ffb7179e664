"""What `fastflow bench` measures on a GPU, as far as a CPU can try it: traffic, backward alone, overhead, targets."""

import json

import pytest
import torch
from test_bench import Count

from fastflow.bench import cases, lists, overhead, run, table
from fastflow.bench.cases import Case
from fastflow.bench.lists import cuda_cases, cuda_targets, select
from fastflow.bench.providers import prepare, serves
from fastflow.bench.traffic import traffic

KERNELS = ("affine_coupling", "logit")
SMALL = [case for case in cuda_cases() if case.shape == (256, 64)]


def test_the_gpu_list_holds_every_figure():
    listed = cuda_cases()
    for op in ("affine_coupling", "act_norm", "logit"):
        found = {(case.shape, case.direction, case.dtype) for case in listed if case.op == op}
        assert found == {(shape, direction, dtype) for shape in ((65536, 784), (256, 12, 128, 128), (256, 64))
                         for direction in ("forward", "inverse", "backward") for dtype in ("float32", "bfloat16")}
    assert {case.op for case in listed} == set(cases.OPS)
    assert select(device="cuda") == listed
    assert select("256x64/sigmoid/backward/bfloat16", device="cuda") == [
        Case("affine_coupling", (256, 64), "sigmoid", "backward", "bfloat16")]
    assert set(listed) <= set(lists.every_case())
    assert not any(case.direction == "backward" for case in lists.full_cases() + lists.quick_cases())


def test_backward_moves_what_training_does_beyond_forward():
    rows, features = 10, 8
    n = 4 * rows * features
    backward = Case("affine_coupling", (rows, features), "sigmoid", "backward")
    assert backward.bytes == 2 * n + n + n + 2 * n + n + n + 4 * rows  # as in test_bench, and the log_det's gradient
    assert Case("logit", (rows, features), "alpha=0.05", "backward").bytes == 3 * n + 4 * rows
    assert backward.flops > 0
    assert backward.targets == {}


@pytest.mark.parametrize("op", ["affine_coupling", "act_norm", "logit"])
def test_backward_alone_gives_the_gradients_of_training(op):
    case = next(case for case in SMALL if (case.op, case.direction, case.dtype) == (op, "backward", "float32"))
    training = Case(case.op, case.shape, case.variant, "forward+backward")
    for provider in ("fastflow", "eager"):
        alone = prepare(provider, case)
        for _ in range(2):  # the graph is kept
            torch.testing.assert_close(alone(), prepare(provider, training)())


@pytest.mark.parametrize("op", KERNELS)
def test_the_compiled_backward_alone_can_be_repeated(op):
    case = next(case for case in SMALL if (case.op, case.direction, case.dtype) == (op, "backward", "float32"))
    assert not serves("aoti", case)
    compiled = prepare("compile", case)
    first = compiled()
    torch.testing.assert_close(compiled(), first)
    torch.testing.assert_close(first, prepare("eager", case)())


def test_backward_alone_dispatches_no_forward():
    case = Case("affine_coupling", (256, 64), "sigmoid", "backward")
    call = prepare("eager", case)
    with torch.autograd.set_multithreading_enabled(False), Count() as count:
        call()
    assert "sigmoid_backward" in count.names
    assert "sigmoid" not in count.names


def test_traffic_counts_what_operations_read_and_write():
    x, y = torch.ones(10), torch.ones(10, 10)
    assert traffic(lambda: x + x) == 3 * 40
    assert traffic(lambda: y[:, :5].t().reshape(50)) == 2 * 200  # the copy, not the views
    assert traffic(lambda: y + x) == 400 + 40 + 400
    assert traffic(lambda: x.expand(10, 10).sum()) == 40 + 4
    assert traffic(lambda: torch.empty(1000)) == 0
    assert traffic(lambda: x.add_(1)) == 80
    assert traffic(lambda: x.copy_(y[0])) == 80
    assert traffic(lambda: torch.zeros_like(x)) == 40


@pytest.mark.parametrize("case", [case for case in SMALL if case.op in KERNELS and "backward" not in case.direction],
                         ids=lambda case: case.name)
def test_the_op_itself_moves_the_minimum(case):
    """Two counts of one thing, the case's formula and the operation's arguments and results."""
    assert traffic(prepare("fastflow", case)) == case.bytes


def test_targets_on_a_gpu_follow_from_the_traffic():
    large, small = (Case("logit", shape, "alpha=0.05", "forward") for shape in ((65536, 784), (256, 64)))
    assert cuda_targets(large, 4 * large.bytes) == {"compile": 0.97, "copy": 0.85, "eager": pytest.approx(3.4)}
    assert cuda_targets(small, 4 * small.bytes) == {"compile": 0.97}
    assert cuda_targets(Case("channel_mix", (256, 24, 14, 14), "full", "forward"), 1) == {}


@pytest.mark.parametrize("case", [case for case in SMALL if case.dtype == "float32" and case.op in KERNELS],
                         ids=lambda case: case.name)
def test_overhead_adds_up(case):
    found = overhead.overhead(case, "cpu", 0.02)
    assert set(found["python"]) == {"fastflow", "eager"}
    assert list(found["parts"]) == ["door", "dispatcher"]  # nothing is launched on a CPU, and there is no graph
    assert sum(found["parts"].values()) == pytest.approx(found["python"]["fastflow"])
    assert found["parts"]["dispatcher"] > 0
    assert "graph" not in found


def measured(**changes) -> dict:
    """A result of logit [65536, 784] in a record: 1 ms, eager 3.5 ms, a copy 0.9 ms."""
    provider = {"seconds": 1e-3, "spread": 0.01}
    return {
        "op": "logit", "size": "65536x784", "variant": "alpha=0.05", "direction": "forward", "dtype": "float32",
        "threads": 1, "bytes": 4 * 10**8, "eager_bytes": 16 * 10**8, "copy_seconds": 0.9e-3, "copy_spread": 0.01,
        "backend": "triton", "disturbance": {"reason": ""}, "failed": {},
        "providers": {"fastflow": provider, "eager": provider | {"seconds": 3.5e-3},
                      "compile": provider | {"seconds": 0.9e-3}},
        "targets": {"compile": 0.97, "copy": 0.85, "eager": 3.4},
    } | changes


def test_the_verdict_on_the_gpu_figures():
    result = measured()
    columns = table.rivals_of([result])
    assert columns == ["eager", "compile", "copy"]
    row = table.row(result, columns)
    for cell in (" 4.00 ", "3.50 >= 3.4 ok", "0.90 < 0.97 MISS", "0.90 >= 0.85 ok"):
        assert cell in row
    assert table.verdict([result]) == "3 targets: 2 met, 1 missed, 0 undecided (not quiet)"
    assert table.verdict([measured(copy_spread=0.5)]) == "3 targets: 1 met, 1 missed, 1 undecided (not quiet)"


def test_the_verdict_on_small_calls():
    cost = {"python": {"fastflow": 25e-6, "eager": 60e-6}, "parts": {"door": 8e-6, "dispatcher": 5e-6, "launch": 12e-6},
            "graph": {"fastflow": 2e-6, "eager": 9e-6}}
    result = measured(targets={}, overhead=cost, failed={"compile": "OutOfMemoryError: no room"})
    row = table.row(result, ["eager"])
    assert "python us 25.0 (target 20) MISS, graph us 2.0 (target 3) ok, python x eager 2.4 (target 2) ok" in row
    assert "parts in us: door 8.0, dispatcher 5.0, launch 12.0" in row
    assert "compile not measured: OutOfMemoryError: no room" in row
    assert table.verdict([result]) == "3 targets: 2 met, 1 missed, 0 undecided (not quiet)"


def test_a_rival_that_fails_is_left_out_and_named(monkeypatch):
    real = run.prepare

    def prepared(provider, case, device):
        if provider == "compile":
            raise RuntimeError("no compiler")
        return real(provider, case, device)

    monkeypatch.setattr(run, "prepare", prepared)
    result = next(run.run([Case("logit", (16, 8), "alpha=0.05", "backward")], ["compile", "eager"], [1], seconds=0.01))
    assert set(result["providers"]) == {"fastflow", "eager"}
    assert result["failed"] == {"compile": "RuntimeError: no compiler"}
    assert result["backend"] in ("cpu", "reference")
    json.dumps(result)
