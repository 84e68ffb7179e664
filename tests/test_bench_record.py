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
from fastflow.bench import build, command, malloc, record, recording, suites

CASE = ["--case", "256x32/sigmoid/forward/float32", "--provider", "eager", "--threads", "1", "--seconds", "0.02",
        "--default-malloc"]


def bench(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.main(parser.parse_args(arguments))


@pytest.fixture(autouse=True, scope="module")
def no_build():
    """Nothing is built here, whatever state the library is in: that would start this process again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "due", lambda device: "")
        yield


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
    assert content["tests"] == content["sanitizer"] == content["failed"] == {}
    assert content["build"]["built"] is False
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
    monkeypatch.setattr(recording, "run", lambda *_, **__: pytest.fail("measured"))
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


def test_every_gpu_test_is_counted_for_one_backend():
    """A record chooses by name: a GPU test that named no backend, or both, would be lost or counted twice."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests"]
    listed = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True).stdout
    tests = [line for line in listed.splitlines() if "::" in line]
    assert tests
    assert [name for name in tests if ("triton" in name) == ("cuda" in name)] == []


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


RECORD = ["record", *CASE, "--commit", "abc", "--folder"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that `record` takes for the repository: its tests are these two files, its records are in `records`."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "records").mkdir()
    (tmp_path / "tests" / "test_logit.py").write_text("def test_good(): pass\n")
    (tmp_path / "tests" / "test_act_norm.py").write_text("def test_good(): pass\ndef test_bad(): assert 0, 'why'\n")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    return tmp_path


def test_tests_and_sanitizers_of_a_record(checkout, capsys):
    assert bench(*RECORD, str(checkout / "records")) == 0
    assert "assert 0, 'why'" in capsys.readouterr().out
    (path,) = (checkout / "records").iterdir()
    content = json.loads(path.read_text())
    assert content["tests"] == {"cpu": {"passed": 2, "failed": 1, "skipped": 0}}
    files = content["test_files"]["cpu"]
    assert "why" in files["tests/test_act_norm.py"]["output"]
    assert "output" not in files["tests/test_logit.py"]
    for tool in suites.TOOLS:
        assert content["sanitizer"]["cpu"][tool]["status"] == "not run"
        assert "`make sanitize`" in content["sanitizer"]["cpu"][tool]["reason"]
    assert bench("report", str(path)) == 0
    printed = capsys.readouterr().out
    assert "cpu tests: 2 passed, 1 failed, 0 skipped" in printed
    assert "cpu memcheck: not run" in printed


def test_a_record_goes_on_where_it_was_stopped(checkout, monkeypatch, capsys):
    done = []
    ran = suites.run

    def run_one(backend, file, expected, deadline):
        if done:
            raise TimeoutError  # as when the minutes end inside the second file
        done.append(file)
        return ran(backend, file, expected, deadline)

    monkeypatch.setattr(suites, "run", run_one)
    arguments = [*RECORD, str(checkout / "records"), "--minutes", "5"]
    assert bench(*arguments) == recording.STOPPED
    stopped = capsys.readouterr().err
    assert "the 5 minutes are over, at least 5 parts are left" in stopped  # a file, two sanitizers, rates and a case
    assert "The same command goes on" in stopped
    assert done == ["tests/test_act_norm.py"]
    (partial,) = (checkout / "records").iterdir()
    assert partial.suffix == ".partial"  # not .json: it proves nothing and is no record

    monkeypatch.setattr(suites, "run", lambda backend, file, *_: done.append(file) or ran(backend, file, *_))
    assert bench(*arguments) == 0
    assert done == ["tests/test_act_norm.py", "tests/test_logit.py"]
    (path,) = (checkout / "records").iterdir()
    assert json.loads(path.read_text())["tests"]["cpu"] == {"passed": 2, "failed": 1, "skipped": 0}


def test_an_unfinished_record_of_other_sources_is_refused(checkout, capsys):
    arguments = [*RECORD, str(checkout / "records")]
    assert bench(*arguments, "--minutes", "0") == recording.STOPPED
    assert "As nothing was finished, give it more." in capsys.readouterr().err
    assert list((checkout / "records").iterdir()) == []

    def out_of_time(*_):
        raise TimeoutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "run", out_of_time)
        assert bench(*arguments, "--minutes", "5") == recording.STOPPED
    capsys.readouterr()
    (checkout / "tests" / "test_logit.py").write_text("def test_other(): pass\n")
    assert bench(*arguments) == 2
    refused = capsys.readouterr().err
    assert "is of another measurement: sources: tests/test_logit.py changed; --fresh starts anew" in refused
    assert bench(*arguments, "--seconds", "0.03") == 2
    assert "options: seconds" in capsys.readouterr().err
    assert bench(*arguments, "--fresh") == 0


def test_a_call_that_fails_is_named_in_the_record(recorded, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("illegal access")

    monkeypatch.setattr(recording, "run", fails)
    assert bench("record", *CASE, "--no-tests", "--commit", "abc", "--folder", str(tmp_path)) == 0
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert content["failed"] == {"affine_coupling/256x32/sigmoid/forward/float32 1": "RuntimeError: illegal access"}
    assert content["results"] == []
    assert bench("report", str(path)) == 0
    assert "FAILED affine_coupling/256x32/sigmoid/forward/float32 1: RuntimeError" in capsys.readouterr().out


def test_a_library_that_was_built_is_used_by_a_fresh_process(checkout, monkeypatch):
    started = []

    def start_again(environment, *arguments):
        started.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(malloc, "start_again", start_again)
    monkeypatch.setattr(build, "build", lambda *_: {"built": True, "reason": "csrc changed", "seconds": 1.0})
    with pytest.raises(KeyboardInterrupt):
        bench(*RECORD, str(checkout / "records"), "--fresh", "--minutes", "5")
    (arguments,) = started
    assert arguments[0] == "--no-fresh"
    assert 4.9 < float(arguments[2]) <= 5
    assert bench(*RECORD, str(checkout / "records"), "--no-fresh") == 0  # as the fresh process has it
