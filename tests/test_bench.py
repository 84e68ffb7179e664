"""Cases, providers, stopwatch and tables of `fastflow bench`."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastflow.bench import cases, table, timing
from fastflow.bench.cases import Case
from fastflow.bench.lists import every_case, full_cases, quick_cases, select
from fastflow.bench.providers import prepare, serves
from fastflow.bench.run import copy_call, run


def coupling(shape=(6, 8), variant="sigmoid", direction="forward", dtype="float32") -> Case:
    return Case("affine_coupling", shape, variant, direction, dtype)


def small(case: Case) -> Case:
    """The same case on a few rows."""
    _, channels, *space = case.shape
    return Case(case.op, (3, channels, *(4 for _ in space)), case.variant, case.direction, case.dtype)


SMALL = sorted({small(case) for case in full_cases() if case.shape[1] <= 64}, key=lambda case: case.name)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_providers_compute_the_same(case):
    expected = prepare("eager", case)()
    for provider in ("fastflow", "nflows", "normflows"):
        if not serves(provider, case):
            continue
        # The arithmetic called normflows has no eps in its sigmoid; 16-bit eager rounds after every operation.
        lax = provider == "normflows" and case.variant == "sigmoid"
        tolerance = 1e-2 if lax else 4e-2 if case.dtype == "bfloat16" else 1e-5
        for index, (mine, theirs) in enumerate(zip(prepare(provider, case)(), expected, strict=True)):
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
            if case.variant == "noise":  # each draws its own
                continue
            scaled_training = case.direction == "forward+backward" and case.variant != "additive"
            if provider == "normflows" and scaled_training and index == 1:
                theirs = torch.stack(theirs.chunk(2, 1), 2).flatten(1, 2)  # its parameters are interleaved
            assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max(), provider


def test_compile_computes_the_same():
    case = coupling(direction="forward+backward")
    for mine, theirs in zip(prepare("compile", case)(), prepare("eager", case)(), strict=True):
        torch.testing.assert_close(mine, theirs)


class Count(TorchDispatchMode):
    """Counts operations as peer surveys do: views and bare allocations left out."""

    FREE = ("view", "split", "slice", "select", "unsqueeze", "flatten", "_unsafe_view", "empty", "empty_like", "detach",
            "lift_fresh", "new_empty", "alias", "expand", "t")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in self.FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("provider", "variant", "direction", "operations"),
    [
        ("nflows", "sigmoid", "forward", 11), ("nflows", "sigmoid", "inverse", 13),
        ("nflows", "additive", "forward", 9),
        ("normflows", "exp", "forward", 9), ("normflows", "exp", "inverse", 11),
        ("normflows", "sigmoid", "forward", 11), ("normflows", "sigmoid", "inverse", 12),
        ("normflows", "additive", "forward", 7),
    ],
)
def test_library_arithmetic_dispatches_what_the_library_does(provider, variant, direction, operations):
    """The numbers were counted in the packages (nflows 0.14, normflows 1.7.3) for one coupling without its network."""
    call = prepare(provider, coupling(variant=variant, direction=direction))
    with Count() as count:
        call()
    added_to_running_log_det = 1
    assert len(count.names) == operations + added_to_running_log_det, count.names


def test_minimum_traffic_counts_every_needed_tensor_once():
    rows, features = 10, 8
    n, log_det = 4 * rows * features, 4 * rows
    assert coupling((rows, features)).bytes == 2 * n + n + n + 2 * n + 2 * log_det  # x, scale, shift, z
    assert coupling((rows, features), "additive").bytes == 5 * n + 2 * log_det
    assert coupling((rows, features), dtype="bfloat16").bytes == 3 * n + 2 * log_det
    training = coupling((rows, features), direction="forward+backward").bytes
    backward = 2 * n + n + n + 2 * n + n + n  # grad_z, saved half, scale, grad_x, grad_scale, grad_shift
    assert training == 6 * n + backward + 3 * log_det
    scores = Case("gaussian_class_scores", (rows, features), "classes=3", "forward")
    assert scores.bytes == 4 * (rows * features + 2 * 3 * features + 3 + rows * 3)
    assert scores.flops == 4 * rows * 3 * features


def test_cases_are_named_selected_and_sized():
    assert coupling((4096, 64)).name == "affine_coupling/4096x64/sigmoid/forward/float32"
    assert {case.name for case in select("4096x64/tanh")} == {
        f"affine_coupling/4096x64/tanh/{direction}/{dtype}" for direction in cases.DIRECTIONS for dtype in cases.BYTES}
    assert {case.op for case in select(op="logit")} == {"logit"}
    assert {case.direction for case in select(direction="inverse", full=True)} == {"inverse"}
    with pytest.raises(ValueError, match=r"no case matches '9x9', expected part of a name like affine_coupling/"):
        select("9x9")
    assert len(quick_cases()) < len(full_cases()) < len(list(every_case()))
    assert set(quick_cases()) | set(full_cases()) <= set(every_case())


def test_regimes_and_targets():
    assert coupling((256, 32)).regime == "small"
    assert coupling((4096, 64)).regime == coupling((256, 12, 14, 14)).regime == "cache"
    assert coupling((16384, 196)).regime == coupling((65536, 64), direction="forward+backward").regime == "memory"
    assert coupling((4096, 64)).targets == {"compile": 3.0, "eager": 4.0, "normflows": 5.0, "nflows": 15.0}
    assert coupling((4096, 64), "clamp_atan", "inverse").targets["compile"] == 2.3
    assert coupling((65536, 64)).targets == {"compile": 2.0, "eager": 4.0}
    assert coupling((65536, 64), direction="forward+backward").targets == {"compile": 1.5, "eager": 2.8}
    assert coupling((4096, 64), dtype="bfloat16").targets == {}


def test_blocks_that_were_interrupted_are_left_out():
    blocks = [(1.0, 0)] * 6 + [(5.0, 1)] * 4
    assert timing.summarize(blocks) == timing.Timing(1.0, 0.0, 6)
    mostly = [(1.0, 0)] * 4 + [(5.0, 1)] * 6
    assert timing.summarize(mostly).seconds == 5.0


def test_the_stopwatch_measures():
    def wait(seconds):
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    with timing.threads(1):
        timings, disturbance = timing.measure({"short": lambda: wait(1e-4), "long": lambda: wait(1e-3)}, 0.1)
    assert 1e-4 < timings["short"].seconds < 3e-4
    assert 1e-3 < timings["long"].seconds < 3e-3
    assert timings["short"].blocks >= timing.ROUNDS[0] // 2
    assert not disturbance.wall_clock


def test_a_busy_machine_is_named():
    assert timing.Disturbance(interrupted=0.1, load=3.0, wall_clock=True).reason == ""
    busy = timing.Disturbance(interrupted=0.6, load=3.0, wall_clock=True)
    assert busy.reason == "60% of the blocks interrupted, load average 3.0"
    assert timing.Disturbance(interrupted=0.6, load=3.0, wall_clock=False).reason == ""


def test_a_noisy_measurement_is_repeated_and_the_quietest_kept(monkeypatch):
    spreads = iter([0.5, 0.2, 0.3, 0.4])

    def attempt(calls, counts, block, seconds):
        time.sleep(seconds)
        return {"call": timing.Timing(1.0, next(spreads), 9)}, timing.Disturbance(0.0, 0.0, wall_clock=True)

    monkeypatch.setattr(timing, "_attempt", attempt)
    timings, _ = timing.measure({"call": lambda: None}, 0.01)
    assert timings["call"].spread == 0.2


def test_cuda_calls_are_timed_one_by_one_after_a_flush(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def elapsed_time(self, end):
            return 2.0  # ms

    def empty(size, dtype, device):
        assert (size, dtype, device) == (50, torch.float32, "cuda")  # four times the L2
        return SimpleNamespace(max=lambda: log.append("flush"))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(L2_cache_size=50))
    monkeypatch.setattr(torch, "empty", empty)
    assert timing.cuda_block(lambda: log.append("call"), 3) == pytest.approx(2e-3)
    assert log == ["flush", "event", "call", "event"] * 3 + ["synchronize"]


def test_threads_are_restored():
    before = torch.get_num_threads()
    with timing.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_peak_memory_counts_temporaries_and_outputs():
    x = torch.zeros(1000)
    assert timing.peak_memory(lambda: x.add(x)) == pytest.approx(4000, abs=200)
    assert timing.peak_memory(lambda: x.exp().log().sum()) == pytest.approx(8000, abs=200)
    assert timing.peak_memory(lambda: x.exp_().log_()) < 200


def test_copy_moves_the_bytes_of_the_case():
    assert copy_call(8000)().numel() * 4 * 2 == 8000


@pytest.fixture(scope="module")
def result() -> dict:
    return next(run([coupling((64, 8))], ["eager", "nflows"], [1], seconds=0.02, memory=True))


def test_run_yields_everything_a_record_needs(result):
    assert set(result["providers"]) == {"fastflow", "eager", "nflows"}
    for provider in result["providers"].values():
        assert provider["seconds"] > 0
        assert provider["spread"] >= 0
        assert provider["peak_bytes"] >= 4 * 64 * 16
    assert (result["threads"], result["size"], result["regime"]) == (1, "64x8", "small")
    assert result["bytes"] == coupling((64, 8)).bytes
    assert result["copy_seconds"] > 0
    assert result["eager_bytes"] > result["bytes"]
    assert result["failed"] == {}
    assert result["backend"] in ("cpu", "reference")
    assert result["targets"] == {}
    assert set(result["disturbance"]) == {"interrupted", "load", "wall_clock", "reason"}


def made_up(seconds: float, rival: float, reason: str = "", spread: float = 0.02) -> dict:
    return {
        "op": "affine_coupling", "size": "4096x64", "variant": "sigmoid", "direction": "forward", "dtype": "float32",
        "threads": 1, "bytes": 6_000_000, "eager_bytes": 19_000_000, "copy_seconds": 40e-6, "backend": "cpu",
        "providers": {"fastflow": {"seconds": seconds, "spread": 0.02},
                      "compile": {"seconds": rival, "spread": spread}},
        "targets": {"compile": 3.0}, "disturbance": {"reason": reason},
    }


def test_a_row_says_time_bandwidth_ratio_and_verdict():
    row = table.row(made_up(80e-6, 320e-6), ["compile", "nflows"])
    assert " ".join(row.split()) == "4096x64 sigmoid forward 80 us 2% 75.0 50% 3.17 4.00 >= 3 ok -"
    assert "2.50 < 3 MISS" in table.row(made_up(80e-6, 200e-6), ["compile"])
    assert "served by the reference" in table.row(made_up(80e-6, 320e-6) | {"backend": "reference"}, ["compile"])


def test_a_row_says_what_is_not_to_be_trusted():
    busy = table.row(made_up(80e-6, 200e-6, "60% of the blocks interrupted"), ["compile"])
    assert "2.50 < 3 ?" in busy
    assert busy.endswith("not quiet: 60% of the blocks interrupted")
    wide = table.row(made_up(80e-6, 200e-6, spread=0.4), ["compile"])
    assert "2.50 < 3 ?" in wide
    assert wide.endswith("not quiet: spread of compile 40%")


def test_columns_stand_under_their_names():
    names, rule = table.header(["compile", "eager"]).split("\n")
    assert len(names) == len(rule) == len(table.row(made_up(80e-6, 320e-6), ["compile", "eager"]))


def test_the_verdict_counts_noise_apart():
    results = [made_up(80e-6, 320e-6), made_up(80e-6, 200e-6), made_up(80e-6, 320e-6, spread=0.4)]
    assert table.verdict(results) == "3 targets: 1 met, 1 missed, 1 undecided (not quiet)"


@pytest.mark.parametrize(("seconds", "text"), [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (8.25e-6, "8.25 us")])
def test_durations_have_a_unit(seconds, text):
    assert table.duration(seconds) == text
