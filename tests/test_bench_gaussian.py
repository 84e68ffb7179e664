"""The Gaussian marginal in `fastflow bench`: rivals that compute the same, cases, targets, and scratch memory."""

import ctypes
import sys

import pytest
import torch
from gaussian_marginal import errors, further, line

from fastflow.bench import lists, malloc, run, table
from fastflow.bench.cases import COVARIANCES, Case, scales_shape
from fastflow.bench.gaussian import too_big
from fastflow.bench.providers import DEFAULT_RIVALS, RIVALS, of_op, prepare, serves
from fastflow.bench.scratch import in_fresh_process, scratch_bytes

OP = "gaussian_class_marginal"


def marginal(variant: str = "classes=3/class_diag", direction: str = "forward", shape=(7, 5), dtype="float32") -> Case:
    return Case(OP, shape, variant, direction, dtype)


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("provider", ["fastflow", "gemm", "mixture"])
def test_providers_compute_the_same(provider, covariance, direction):
    case = marginal(f"classes=3/{covariance}", direction, dtype="float64")
    expected = prepare("eager", case)()
    if provider == "mixture" and case.trains:  # its Categorical makes any logits probabilities
        *others, grad = expected
        expected = (*others, grad - grad.sum() / 3)
    torch.testing.assert_close(prepare(provider, case)(), expected)


def test_an_absent_keops_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pykeops", None)
    result = next(run.run([marginal()], ["keops"], [1], seconds=0.01))
    assert result["failed"]["keops"].startswith("ValueError: pykeops is not installed; pip install 'fastflow[bench]'")


def test_the_compiled_expanded_form_computes_the_same():
    torch.testing.assert_close(prepare("gemm-compile", marginal())(), prepare("gemm", marginal())())


def test_an_op_has_its_own_rivals():
    assert of_op(OP, RIVALS) == ["compile", "aoti", "eager", "gemm-compile", "gemm", "mixture", "keops"]
    assert of_op("logit", DEFAULT_RIVALS) == ["compile", "eager"]
    assert of_op("affine_coupling", DEFAULT_RIVALS) == ["compile", "eager", "normflows", "nflows"]
    assert not serves("mixture", Case("logit", (256, 64), "alpha=0.05", "forward"))
    assert table.columns_of("logit", ["compile", "keops"], "cuda") == ["compile", "copy", "matrix"]


def test_parameters_have_the_shape_of_their_covariance():
    shapes = [scales_shape(marginal(f"classes=3/{covariance}")) for covariance in COVARIANCES]
    assert shapes == [(3, 5), (1, 5), (3, 1)]
    assert scales_shape(Case("gaussian_class_scores", (7, 5), "classes=3", "forward")) == (3, 5)


def test_minimum_traffic_reads_z_twice_and_writes_its_gradient():
    parameters = 3 * 5 + 3 * 5 + 3
    assert marginal().bytes == 4 * (7 * 5 + parameters + 7)
    assert marginal(direction="forward+backward").bytes == 4 * (3 * (7 * 5 + parameters) + 3 * 7)
    assert marginal(direction="forward+backward").flops == 3 * 4 * 7 * 3 * 5
    large = next(case for case in lists.cuda_cases() if case.op == OP and case.shape == (65536, 784))
    assert large.bytes == pytest.approx(3 * 4 * 65536 * 784, rel=2e-3)


def test_what_holds_every_difference_is_left_out_where_it_is_too_big():
    small, large = (marginal(f"classes={count}/class_diag", shape=(4096, 196)) for count in (100, 1000))
    assert too_big("eager", small) == too_big("mixture", small) == too_big("compile", large) == ""
    assert too_big("mixture", large).startswith("[B, K, D] would take 3.0 GiB, of which several, more than the limit")
    training = marginal("classes=1000/class_diag", "forward+backward", (4096, 196))
    assert too_big("compile", training)
    assert too_big("gemm-compile", training) == too_big("fastflow", training) == ""
    with pytest.raises(ValueError, match="more than the limit"):
        prepare("eager", large)


def test_targets_on_a_cpu():
    quick = lists.select(op=OP)
    assert {case.direction for case in quick} == {"forward", "forward+backward"}
    assert marginal().targets == {"compile": 1.9, "gemm-compile": 1.15, "mixture": 100.0, "keops": 15.0}
    assert marginal(direction="forward+backward").targets == {"compile": 1.5, "mixture": 30.0}
    assert marginal("classes=3/isotropic").targets == {}
    sizes = {(case.variant.partition("/")[0], case.shape[1], case.direction) for case in lists.select(op=OP, full=True)}
    assert sizes == {(f"classes={count}", features, direction) for count in (10, 100, 1000)
                     for features in (64, 196, 784) for direction in ("forward", "forward+backward")}


def test_targets_on_a_gpu():
    listed = {case: lists.cuda_targets(case, 0) for case in lists.select(op=OP, device="cuda")}
    copies = {case.variant: targets["copy"] for case, targets in listed.items() if "copy" in targets}
    assert copies == {"classes=10/class_diag": 0.45, "classes=10/shared_diag": 0.7, "classes=10/isotropic": 0.7}
    assert [case.name for case, targets in listed.items() if "matrix" in targets] == [
        f"{OP}/65536x196/classes=1000/class_diag/forward/float32"]


def test_the_rate_of_products_is_a_yardstick_where_it_is_a_target(monkeypatch):
    monkeypatch.setattr(Case, "targets", {"matrix": 0.5, "eager": 1e-9})
    monkeypatch.setitem(run.RATES, "cpu", (2**20, 64))
    result = next(run.run([marginal()], ["eager"], [1], seconds=0.02))
    assert result["targets"] == {"matrix": 0.5, "eager": 1e-9}
    flops_per_second = marginal().flops / result["matrix_seconds"]
    assert 1e6 < flops_per_second < 1e13
    assert table.speed_over(result, "matrix") == result["matrix_seconds"] / result["providers"]["fastflow"]["seconds"]
    assert "< 0.5" in table.row(result, ["matrix"])
    assert result["backend"] in ("cpu", "reference")


def scratch_of(taken: int, written: int, returned: int) -> int:
    """Of a call that takes bytes from malloc, writes some of them, and gives them back when its result is made."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]

    def call(scale: float) -> torch.Tensor:
        memory = libc.malloc(int(scale * taken))
        ctypes.memset(memory, 1, int(scale * written))
        result = torch.ones(int(scale * returned) // 4)
        libc.free(memory)
        return result

    return scratch_bytes(lambda: call(1.0), lambda: call(1e-3))


@pytest.mark.parametrize("written", [8_000_000, 0])
def test_scratch_is_what_is_written_whoever_allocates_it(monkeypatch, written):
    monkeypatch.setenv("GLIBC_TUNABLES", ":".join(f"{name}={value}" for name, value in malloc._TUNABLES.items()))
    assert in_fresh_process(scratch_of, 8_000_000, written, 4_000_000) == pytest.approx(written, abs=5e5)


def test_scratch_asks_for_an_allocator_that_keeps_pages(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    with pytest.raises(ValueError, match="malloc is not tuned"):
        scratch_bytes(lambda: None, lambda: None)


def test_the_command_judges_error_and_scratch(monkeypatch):
    own, eager = errors(marginal(shape=(600, 5)), "cpu")
    assert 0 < own < 1e-4
    assert 0 < eager < 1e-4
    monkeypatch.setattr("gaussian_marginal.scratch", lambda case, count, device: 2_000_000)
    found = further(marginal(), 1, "cpu")
    assert found["met"]["scratch"] is False
    assert "scratch 2.00 MB (at most 1: missed)" in line(found | {"met": {"error": True, "scratch": False}})
