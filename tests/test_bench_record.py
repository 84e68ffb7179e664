"""`fastflow bench` as a command: records, reports, comparisons, and what a mistake of the user gets."""

import argparse
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from fastflow import _proof
from fastflow.bench import command, malloc, record

CASE = ["--case", "256x32/sigmoid/forward/float32", "--provider", "eager", "--threads", "1", "--seconds", "0.02",
        "--default-malloc"]


def bench(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.main(parser.parse_args(arguments))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    assert bench("record", *CASE, "--no-tests", "--commit", "0123456789abcdef", "--folder", str(folder)) == 0
    return next(folder.iterdir())


def test_run_prints_a_table_and_writes_json(tmp_path, capsys):
    assert bench("run", *CASE, "--json", str(tmp_path / "results.json")) == 0
    printed = capsys.readouterr().out
    assert "affine_coupling, cpu, 1 thread(s), malloc" in printed
    assert "256x32 sigmoid" in printed
    assert "0 targets: 0 met" in printed  # the only target of a small call is against compile
    (result,) = json.loads((tmp_path / "results.json").read_text())
    assert set(result["providers"]) == {"fastflow", "eager"}


def test_a_record_holds_what_makes_it_evidence(recorded):
    content = json.loads(recorded.read_text())
    assert content["commit"] == "0123456789abcdef"
    assert content["device"]["type"] == "cpu"
    assert content["versions"]["torch"]
    assert content["sources"] == _proof.sources()
    assert content["sources"]["fastflow/ops/affine_coupling.py"]
    assert content["rates"]["1"]["copy_bytes_per_second"] > 1e8
    assert content["rates"]["1"]["matrix_flops_per_second"] > 1e8
    assert content["tests"] == {}
    (result,), rates = content["results"], content["rates"]["1"]
    measured = result["providers"]["fastflow"]
    assert measured["peak_bytes"] > 0
    assert measured["copy_share"] == pytest.approx(
        result["bytes"] / measured["seconds"] / rates["copy_bytes_per_second"])
    assert measured["matrix_share"] == pytest.approx(
        result["flops"] / measured["seconds"] / rates["matrix_flops_per_second"])
    stamp = content["time"].replace("-", "").replace(":", "").removesuffix("+0000") + "Z"
    assert recorded.name.endswith(f"-{stamp}.json")


def test_report_prints_the_record(recorded, capsys):
    assert bench("report", str(recorded)) == 0
    printed = capsys.readouterr().out
    assert "commit 0123456789ab" in printed
    assert "256x32 sigmoid" in printed


def test_compare_divides_times(recorded, tmp_path, capsys):
    faster = json.loads(recorded.read_text())
    for result in faster["results"]:
        result["providers"]["fastflow"]["seconds"] /= 4
    (tmp_path / "faster.json").write_text(json.dumps(faster))
    assert bench("compare", str(recorded), str(tmp_path / "faster.json")) == 0
    assert " 4.00" in capsys.readouterr().out
    faster["device"]["name"] = "another"
    (tmp_path / "faster.json").write_text(json.dumps(faster))
    bench("compare", str(recorded), str(tmp_path / "faster.json"))
    assert "devices differ" in capsys.readouterr().out


def test_serving_prints_the_table(capsys, monkeypatch):
    monkeypatch.setattr("fastflow.bench.serving.LAYOUTS", ("mask",))
    assert bench("serving") == 0
    assert "| affine_coupling mask | " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--case", "9x9", "--default-malloc"], "no case matches '9x9'"),
        (["run", *CASE, "--json", "/no/such/folder/results.json"], "json is /no/such/folder/results.json, expected"),
        (["record", *CASE, "--folder", "/no/such/folder"], "folder is /no/such/folder, expected"),
        (["report", "/no/such/record.json"], "/no/such/record.json"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(arguments, message, capsys):
    assert bench(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_file_that_is_no_record_is_refused(recorded, tmp_path, capsys):
    whole = {"device": {"name": "x"}, "commit": "y", "results": [{"op": "affine_coupling"}], "versions": {}}
    for text in ("not json", "[]", '{"results": []}', json.dumps(whole), "[" * 100000):
        (tmp_path / "other.json").write_text(text)
        for arguments in (["report"], ["compare", str(recorded)]):
            assert bench(*arguments, str(tmp_path / "other.json")) == 2
            assert "other.json is not a record" in capsys.readouterr().err


def test_what_a_record_lacks_is_said_before_measuring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "_measure", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(record, "ROOT", tmp_path)
    arguments = ["record", *CASE, "--commit", "abc", "--folder", str(tmp_path)]
    assert bench(*arguments) == 2
    assert "expected a checkout; --no-tests records without them" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(name="GPU"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench(*arguments, "--device", "cuda") == 2
    assert "nvidia-smi failed" in capsys.readouterr().err


def test_commit_must_be_given_without_git(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="expected --commit SHA"):
        record.commit(None)
    assert record.commit("abc") == "abc"


def test_tests_are_counted_from_the_junit_file(tmp_path):
    report = tmp_path / "tests.xml"
    assert record.count_tests(report) == {"passed": 0, "failed": 1, "skipped": 0}
    report.write_text('<testsuites><testsuite tests="10" failures="1" errors="2" skipped="3"/></testsuites>')
    assert record.count_tests(report) == {"passed": 4, "failed": 3, "skipped": 3}


def test_every_gpu_test_is_counted_for_one_backend():
    """`run_tests` chooses by name: a GPU test that named no backend, or both, would be lost or counted twice."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests"]
    listed = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True).stdout
    tests = [line for line in listed.splitlines() if "::" in line]
    assert tests
    assert [name for name in tests if ("triton" in name) == ("cuda" in name)] == []


def test_the_recorded_tests_are_those_of_the_measured_ops():
    names = [path.rpartition("/")[2] for path in record._op_tests()]
    assert "test_affine_coupling.py" in names
    assert all(name.startswith("test_") for name in names)


def test_tuned_malloc_starts_again_once():
    code = (f"import runpy; malloc = runpy.run_path({malloc.__file__!r}); malloc['ensure_tuned']();"
            "print(malloc['tuned'](), malloc['description']())")
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "True tuned: mmap and trim thresholds raised"
    assert done.stderr.count("starting again") == 1


def test_tuned_malloc_is_told_from_default(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert not malloc.tuned()
    assert malloc.description() == "default"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1:glibc.malloc.trim_threshold=1")
    assert malloc.tuned()
