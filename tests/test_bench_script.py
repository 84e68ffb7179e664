"""`fastflow.bench.script`, what the scripts of benchmarks/ share: what they refuse, and what they write."""

import argparse
import json

import pytest
import torch

from fastflow.bench import malloc, record, script


def started(monkeypatch, *arguments: str) -> argparse.Namespace:
    monkeypatch.setattr("sys.argv", ["name.py", *arguments])
    return script.start(script.parser("What it costs.\n\nMore.", seconds=3, spent_on="each case"))


def test_the_help_says_what_is_spent(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        started(monkeypatch, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "What it costs. options:" in shown
    assert "spent on each case (default 3)" in shown


@pytest.mark.parametrize(("arguments", "line"), [
    (["--json", "missing/x.json"], "json is missing/x.json, expected a file in a folder that exists"),
    (["--json", "x.json"], "commit is unknown here, expected --commit SHA where there is no .git"),
    (["--device", "cuda"], "device is cuda, expected cpu: torch sees no CUDA device here")])
def test_a_mistake_is_one_line(arguments, line, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        started(monkeypatch, *arguments)
    assert capsys.readouterr().err == f"name.py: {line}\n"


def test_the_allocator_is_tuned_on_a_cpu_unless_told_not_to(monkeypatch):
    calls = []
    monkeypatch.setattr(malloc, "ensure_tuned", lambda: calls.append("tuned"))
    started(monkeypatch, "--default-malloc")
    assert not calls
    started(monkeypatch)
    assert calls == ["tuned"]


def test_results_are_written_with_where_they_come_from(monkeypatch, tmp_path):
    path = tmp_path / "found.json"
    options = started(monkeypatch, "--default-malloc", "--json", str(path), "--commit", "abc")
    script.write(options, results=[1, 2])
    written = json.loads(path.read_text())
    assert list(written) == ["device", "versions", "commit", "malloc", "results"]
    assert (written["device"]["type"], written["commit"], written["results"]) == ("cpu", "abc", [1, 2])
    assert written["malloc"] == malloc.description()
