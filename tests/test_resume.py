"""A run that is killed at any moment and resumed ends as if nothing had happened: same weights, same metrics."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_flow import SMALL

from fastflow.training.checkpoint import load_state
from fastflow.training.record import read_metrics


@pytest.fixture(scope="module")
def server():
    arguments = [sys.executable, str(Path(__file__).with_name("killable.py"))]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process


def run(server, config, folder, **options) -> int:
    """The exit code of a run in a process of its own, -9 if it was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    server.stdin.write(json.dumps({"config": config, "folder": str(folder), **options}) + "\n")
    server.stdin.flush()
    status = json.loads(server.stdout.readline())["status"]
    assert status in (0, -signal.SIGKILL), folder.with_suffix(".log").read_text()
    return status


def outcome(folder):
    """Weights, averages, optimiser state (by their sha256), results and metrics of a run; not how fast it was."""
    sums, results = {}, {}
    for path in sorted(folder.glob("checkpoints/*/*")):
        results[path.name] = load_state(path).get("results")
        for line in (path / "SHA256SUMS").read_text().splitlines():
            if not line.endswith("state.json"):
                digest, name = line.split("  ")
                sums[f"{path.parent.name}/{path.name}/{name}"] = digest
    lines = read_metrics(folder / "metrics.jsonl")
    for line in lines:
        line.pop("rows_per_second", None)
    return sums, results, lines


def test_killed_at_random_moments(server, tmp_path):
    config = SMALL | {"steps": 40, "seeds": 2, "log_every": 4, "evaluate_every": 20, "checkpoint_every": 3, "keep": 100}
    start = time.monotonic()
    assert run(server, config, tmp_path / "whole") == 0
    whole = time.monotonic() - start
    moments = random.Random(0)
    statuses = [run(server, config, tmp_path / "killed", seconds=whole * moments.uniform(0.02, 0.2)) for _ in range(10)]
    assert statuses.count(-signal.SIGKILL) >= 3
    assert run(server, config, tmp_path / "killed") == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_killed_in_every_operation_of_a_checkpoint(server, tmp_path):
    """The write of every file, every fsync and rename, half of a file, the deletion of the checkpoint before."""
    config = SMALL | {"steps": 4, "log_every": 3, "evaluate_every": 4, "checkpoint_every": 2, "keep": 1}
    assert run(server, config, tmp_path / "whole", tiny=True) == 0
    whole = outcome(tmp_path / "whole")
    operation = 0
    while run(server, config, folder := tmp_path / f"killed-{operation}", tiny=True, operation=operation):
        assert run(server, config, folder, tiny=True) == 0
        assert outcome(folder) == whole, f"killed before durable operation {operation}"
        operation += 1
    assert operation > 40


def test_metrics_are_one_json_object_a_line(server, tmp_path):
    config = SMALL | {"steps": 4, "log_every": 1, "evaluate_every": 2, "checkpoint_every": 2}
    assert run(server, config, tmp_path / "run", tiny=True) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    seen = [(line["step"], line["split"]) for line in map(json.loads, lines)]
    assert seen == [(1, "train"), (2, "train"), (2, "monitor"), (3, "train"), (4, "train"), (4, "monitor"), (4, "test")]
