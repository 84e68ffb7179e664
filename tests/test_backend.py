"""The choice of the backend: what is asked for, what is available, what is proved."""

import json
import os
import subprocess
import sys

import pytest
import torch
from needs import require

import fastflow
from fastflow import _backend, _library, _proof
from fastflow.doctor import doctor
from fastflow.ops import ScaleMap, affine_coupling
from fastflow.ops._define import Op


def _run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture
def fresh_states():
    """States as a new process would find them, before and after the test."""
    caches = (_backend.state, _backend._warn_unproved, _backend._has_kernel, _proof.sources, _proof._records)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_every_backend_has_a_state_and_a_remedy_where_it_does_not_serve():
    states = fastflow.backends()
    assert list(states) == ["reference", "cpu", "triton", "cuda"]
    assert states["reference"].status == "available"
    for state in states.values():
        assert state.reason
        assert state.status == "available" or state.remedy


def test_backend_is_restored_after_nesting_and_errors():
    with fastflow.backend("reference"):
        with fastflow.backend("auto"):
            assert _backend.forced() is None
        with pytest.raises(KeyError), fastflow.backend("cpu"):
            raise KeyError
        assert _backend.forced() == "reference"
    assert _backend.forced() is None


def test_unknown_backend_is_refused_by_name():
    with pytest.raises(ValueError, match="backend is 'gpu', expected one of auto, reference, cpu, triton, cuda"):
        fastflow.backend("gpu").__enter__()


def test_environment_variable_is_read_at_import():
    asked = _run("from fastflow import _backend; print(_backend.forced())", FASTFLOW_BACKEND="reference")
    assert asked.stdout.strip() == "reference"
    wrong = _run("import fastflow; print('imported'); fastflow._backend.forced()", FASTFLOW_BACKEND="gpu")
    assert wrong.stdout == "imported\n"
    assert "ValueError: FASTFLOW_BACKEND: backend is 'gpu', expected one of" in wrong.stderr


def test_instruction_set_beyond_the_cpu_is_refused_where_it_is_asked_for():
    code = ("import fastflow, torch\nfrom fastflow.ops.affine_coupling import *\nprint(fastflow.backends()['cpu'])\n"
            "x = torch.ones(2, 4)\naffine_coupling(x, x, x, scale_map=ScaleMap())")
    result = _run(code, FASTFLOW_CPU_ISA="avx1024")
    assert "unavailable" in result.stdout
    assert "FASTFLOW_CPU_ISA is avx1024, expected baseline, avx2 or avx512" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what only a machine without CUDA lacks")
@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_backend_that_cannot_serve_raises_with_the_reason(name):
    x = torch.ones(2, 4)
    with fastflow.backend(name), pytest.raises(RuntimeError, match=f"affine_coupling: backend '{name}' was asked for"):
        affine_coupling(x, x, x, scale_map=ScaleMap())


def test_a_backend_without_a_kernel_of_the_op_raises():
    torch.library.define("fastflow::without_kernels", "(Tensor x) -> Tensor")
    with pytest.raises(RuntimeError, match="without_kernels: backend 'cpu' was asked for and has no kernel of this op"):
        _backend.require("without_kernels", "cpu", "cpu")


def test_cpu_backend_refuses_another_device():
    with pytest.raises(RuntimeError, match="x is on cuda, expected cpu"):
        _backend.require("affine_coupling", "cpu", "cuda")


def test_forced_backend_is_checked_while_compiling():
    def coupled(x):
        return affine_coupling(x, x, x, scale_map=ScaleMap())[0]

    compiled = torch.compile(coupled, fullgraph=True, backend="eager")
    x = torch.ones(2, 4)
    with fastflow.backend("cpu"):
        torch.testing.assert_close(compiled(x), x * torch.e + x)


def test_cuda_key_serves_the_reference_until_the_kernel_is_proved(monkeypatch, fresh_states):
    monkeypatch.setattr(_backend, "launcher", lambda op, name: lambda x: x + 1)
    op = Op.__new__(Op)
    op.name, op.on_cuda = "gaussian_class_scores", "cuda"
    on_cuda = op._launch_or_fall_back(lambda x: x)

    monkeypatch.setattr(_backend, "state", lambda name: _backend.State("unproved", "no record", "record one"))
    with pytest.warns(UserWarning, match="the cuda kernels are unproved: no record"):
        assert on_cuda(1) == 1
    assert on_cuda(1) == 1  # warned once: a second warning would be an error here

    monkeypatch.setattr(_backend, "state", lambda name: _backend.State("available", "proved"))
    assert on_cuda(1) == 2


GREEN = {"passed": 3, "failed": 0, "skipped": 0}
CHECKED = {"memcheck": {"status": "passed"}, "racecheck": {"status": "passed"}}


def _record(**changes) -> dict:
    return {"sources": dict(_proof.sources()), "tests": {"triton": GREEN, "cuda": GREEN},
            "sanitizer": {"triton": CHECKED, "cuda": CHECKED}, "failed": {}} | changes


def _proved_by(monkeypatch, tmp_path, record: dict) -> dict[str, bool]:
    (tmp_path / "record.json").write_text(json.dumps(record))
    monkeypatch.setattr(_proof, "_RECORDS", (tmp_path,))
    _proof._records.cache_clear()
    return {name: _proof.proved(name) for name in ("triton", "cuda")}


def test_a_green_record_of_the_present_sources_proves_both(monkeypatch, tmp_path, fresh_states):
    assert _proved_by(monkeypatch, tmp_path, _record()) == {"triton": True, "cuda": True}


@pytest.mark.parametrize("counts", [
    {}, {"passed": 0, "failed": 0}, {"passed": 3, "failed": 1},
    {"passed": 0, "failed": 0, "skipped": 9},  # the C++ tests on a machine without nvcc
])
def test_each_backend_is_proved_by_its_own_tests(monkeypatch, tmp_path, fresh_states, counts):
    def proved_by(**tests) -> dict[str, bool]:
        return _proved_by(monkeypatch, tmp_path, _record(tests=tests))

    assert proved_by() == {"triton": False, "cuda": False}
    assert proved_by(triton=GREEN, cuda=counts) == {"triton": True, "cuda": False}
    assert proved_by(triton=counts, cuda=GREEN) == {"triton": False, "cuda": True}


@pytest.mark.parametrize("checks", [
    {}, {"memcheck": {"status": "passed"}}, CHECKED | {"racecheck": {"status": "failed"}},
    CHECKED | {"memcheck": {"status": "not run", "reason": "compute-sanitizer is not here"}},
])
def test_each_backend_is_proved_by_its_own_sanitizers(monkeypatch, tmp_path, fresh_states, checks):
    record = _record(sanitizer={"triton": checks, "cuda": CHECKED})
    assert _proved_by(monkeypatch, tmp_path, record) == {"triton": False, "cuda": True}


def test_a_call_that_failed_when_it_was_timed_proves_nothing(monkeypatch, tmp_path, fresh_states):
    record = _record(failed={"logit/256x64/alpha=0.05/forward/float32 1": "RuntimeError: illegal access"})
    assert _proved_by(monkeypatch, tmp_path, record) == {"triton": False, "cuda": False}


@pytest.mark.parametrize(("source", "proved"), [
    ("kernels/affine_coupling.py", {"triton": False, "cuda": True}),
    ("csrc/cuda/gaussian_class_scores.cu", {"triton": True, "cuda": False}),
    ("csrc/gaussian_class_scores.h", {"triton": True, "cuda": False}),
    ("fastflow/ops/affine_coupling.py", {"triton": False, "cuda": False}),
    ("csrc/cpu/instruction_set.cpp", {"triton": True, "cuda": True}),
])
def test_a_changed_source_unproves_what_it_decides(monkeypatch, tmp_path, fresh_states, source, proved):
    sources = dict(_proof.sources())
    assert source in sources
    assert _proved_by(monkeypatch, tmp_path, _record(sources=sources | {source: "another"})) == proved
    del sources[source]
    assert _proved_by(monkeypatch, tmp_path, _record(sources=sources)) == proved


@pytest.fixture
def device(monkeypatch, fresh_states):
    """A machine that says it has a CUDA device of the capability that the test gives; nothing is run on it."""
    def of_capability(*capability: int) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")

    return of_capability


def test_triton_on_a_device_is_unproved_until_a_record_shows_it_green(monkeypatch, tmp_path, device):
    require("triton")
    device(9, 0)
    monkeypatch.setattr(_proof, "_RECORDS", ())
    state = _backend.state("triton")
    assert state.status == "unproved"
    assert 'fastflow.backend("triton")' in state.remedy

    _proved_by(monkeypatch, tmp_path, _record())
    _backend.state.cache_clear()
    assert _backend.state("triton").status == "available"


def test_an_op_without_a_kernel_of_a_backend_is_named_on_a_device(device):
    require("nvcc")
    device(9, 0)
    with pytest.raises(RuntimeError, match="affine_coupling: backend 'cuda' was asked for and has no kernel"):
        _backend.require("affine_coupling", "cuda", "cuda")
    _backend.require("gaussian_class_scores", "cuda", "cuda")


def test_a_device_too_old_for_the_kernels_is_named(device):
    require("triton")
    device(7, 5)
    state = _backend.state("triton")
    assert state.status == "unavailable"
    assert "7.5" in state.reason
    assert "8.0" in state.remedy


def test_doctor_names_every_backend_and_every_remedy():
    report = doctor()
    for name, state in fastflow.backends().items():
        assert name in report
        assert state.reason in report
        assert state.remedy in report
    assert _library.instruction_set() in report
    assert torch.__version__ in report
