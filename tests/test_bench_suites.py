"""The tests that a record counts: by backend, a file at a time, and under a stand-in for compute-sanitizer."""

import sys
import time
from pathlib import Path

import pytest

from fastflow.bench import record, suites, watching
from fastflow.bench.parts import Deadline

PYPROJECT = '[tool.pytest.ini_options]\naddopts = "-m \'not gpu\'"\nmarkers = ["gpu: needs a device"]\n'
GPU = "import pytest\npytestmark = pytest.mark.gpu\n"
PASSED = {"passed": 1, "failed": 0, "skipped": 0}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of three test files."""
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_mixed.py").write_text(
        f"{GPU}def test_triton_one(): pass\ndef test_triton_two(): pass\ndef test_cuda(): assert False, 'why'\n")
    (tests / "test_plain.py").write_text("def test_triton(): pass\n")
    (tests / "test_streams_and_graphs.py").write_text(
        f"{GPU}def test_poisoned_triton(): pass\ndef test_triton(): 1 / 0\n")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    return tmp_path


def test_gpu_tests_are_collected_by_backend(checkout):
    assert suites.files("triton") == {"tests/test_mixed.py": 2, "tests/test_streams_and_graphs.py": 2}
    assert suites.files("cuda") == {"tests/test_mixed.py": 1}


def test_a_file_that_cannot_be_collected_is_an_error(checkout):
    (checkout / "tests" / "test_broken.py").write_text("import no_such_module\n")
    with pytest.raises(ValueError, match=r"the cuda tests cannot be collected: (.|\n)*no_such_module"):
        suites.files("cuda")


def test_a_file_is_run_for_one_backend(checkout):
    green = suites.run("triton", "tests/test_mixed.py", 2, Deadline())
    assert {key: green[key] for key in PASSED} == {"passed": 2, "failed": 0, "skipped": 0}
    red = suites.run("cuda", "tests/test_mixed.py", 1, Deadline())
    assert (red["failed"], "why" in red["output"]) == (1, True)


def test_a_test_that_was_expected_and_did_not_run_has_failed(checkout):
    assert suites.run("triton", "tests/test_mixed.py", 5, Deadline())["failed"] == 3
    (checkout / "tests" / "test_mixed.py").write_text("import os\nos._exit(7)\n")
    assert suites.run("triton", "tests/test_mixed.py", 2, Deadline())["failed"] >= 1


def test_the_deadline_ends_what_runs(checkout):
    (checkout / "tests" / "test_mixed.py").write_text(f"{GPU}import time\ndef test_triton(): time.sleep(60)\n")
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        suites.run("triton", "tests/test_mixed.py", 1, Deadline(start + 2))
    assert time.monotonic() - start < 20


def sanitizer(folder: Path, then: str) -> None:
    """A program named compute-sanitizer that runs the command after its own options, and `then` this."""
    program = folder / "compute-sanitizer"
    skip = f'while [ "$1" != {sys.executable} ]; do shift; done'
    program.write_text(f'#!/bin/sh\necho "$@" > options\n{skip}\n{then}\n')
    program.chmod(0o755)


def test_the_small_set_under_the_sanitizer(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout), prepend=":")
    sanitizer(checkout, '"$@"')
    found = suites.sanitize("triton", "racecheck", Deadline())
    assert found["status"] == "passed", found
    assert {key: found[key] for key in PASSED} == PASSED
    options = (checkout / "options").read_text()
    assert "--tool racecheck --error-exitcode 86" in options
    assert "--kernel-name kns=affine_coupling " in options


@pytest.mark.parametrize(("then", "reason"), [
    ('"$@"; exit 86', "memcheck found errors"),
    ("echo Device not supported; exit 1", "exit code 1, 0 tests passed"),
    ("exit 0", "exit code 0, 0 tests passed"),
])
def test_a_sanitizer_that_finds_something_or_does_not_work_has_failed(checkout, monkeypatch, then, reason):
    monkeypatch.setenv("PATH", str(checkout), prepend=":")
    sanitizer(checkout, then)
    found = suites.sanitize("triton", "memcheck", Deadline())
    assert (found["status"], found["reason"]) == ("failed", reason)


def test_an_absent_sanitizer_has_not_run(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    monkeypatch.setenv("CUDA_HOME", str(checkout))
    assert suites.find_sanitizer() is None
    assert suites.sanitize("triton", "memcheck", Deadline())["status"] == "not run"
    (checkout / "bin").mkdir()
    sanitizer(checkout / "bin", "")
    assert suites.find_sanitizer() == f"{checkout}/bin/compute-sanitizer"


def test_tests_are_counted_from_the_junit_file(tmp_path):
    report = tmp_path / "tests.xml"
    assert suites.count_tests(report) == {"passed": 0, "failed": 1, "skipped": 0}
    report.write_text('<testsuites><testsuite tests="10" failures="1" errors="2" skipped="3"/></testsuites>')
    assert suites.count_tests(report) == {"passed": 4, "failed": 3, "skipped": 3}


def test_the_recorded_tests_on_a_cpu_are_those_of_the_measured_ops():
    assert "tests/test_affine_coupling.py" in suites.files("cpu")


def test_the_sanitizers_watch_every_kernel_and_run_every_op():
    """They choose kernels by what is in their names: one named otherwise would go unwatched."""
    import cuda_code
    from test_streams_and_graphs import CASES

    pytest.importorskip("triton")
    from fastflow.bench import gate_cases, machine_code

    ops, watched = {name for name, op in watching.ops().items() if op.on_cuda}, suites.watched_kernels("triton")
    names = {launch.kernel.fn.__name__ for case in gate_cases.CASES for launch in machine_code.launches(case.call)}
    assert {name for name in names if not any(part in name for part in watched)} == set()
    watched = suites.watched_kernels("cuda")
    assert [kernel for kernel in cuda_code.kernels("") if not any(part in kernel.name for part in watched)] == []
    assert {op for op in ops if not op.endswith("_backward")} == {case.op for case in CASES}
