"""Every system through the command line: trained, resumed, evaluated, sampled, drawn."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_run import call
from systems import SYSTEMS
from test_resume import outcome

from fastflow.training.record import read_metrics


@pytest.fixture(scope="module")
def m1(tmp_path_factory) -> Path:
    """The run of an M1, which the M1+M2 starts from."""
    folder = tmp_path_factory.mktemp("m1")
    (folder / "m1.yaml").write_text(yaml.safe_dump(SYSTEMS["m1"]))
    assert call("train", folder / "m1.yaml", "--no-figures", "--out", folder / "run") == 0
    return folder / "run"


@pytest.fixture(params=SYSTEMS)
def run(request, tmp_path, monkeypatch, m1) -> Path:
    """The finished run `run` of a system, with figures."""
    monkeypatch.chdir(tmp_path)
    config = SYSTEMS[request.param]
    if "pretrained" in config:
        config = config | {"pretrained": str(m1)}
    Path("system.yaml").write_text(yaml.safe_dump(config))
    assert call("train", "system.yaml", "--out", "run", "--no-figures") == 0
    return tmp_path / "run"


def test_a_system_is_trained_resumed_evaluated_sampled_and_drawn(run, capsys):
    whole = outcome(run)
    for name in ("final", "step-00000004"):
        shutil.rmtree(run / "checkpoints/seed-0" / name)
    assert call("train", run, "--resume", "--no-figures") == 0
    assert outcome(run) == whole
    capsys.readouterr()
    assert call("eval", run) == 0
    printed = capsys.readouterr().out
    results = json.loads((run / "checkpoints/seed-0/final/state.json").read_text())["results"]
    density = next(name for name in ("bits_per_dim", "nll", "bits_per_dim_bound", "nll_bound") if name in results)
    assert f"{results[density]:.4f}" in printed
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert ("error" in results) == (config["data"]["labels"] > 0)
    assert len(read_metrics(run / "metrics.jsonl")) == 5
    with np.load(run / "splits/seed-0.npz") as split:
        assert len(split["labelled"]) == config["data"]["labels"]
    assert call("figures", run) == 0
    drawn = {path.stem.removesuffix("-seed-0") for path in (run / "figures").iterdir()}
    assert drawn >= {"curves", "points" if config["data"]["name"] == "moons" else "latents"}
    assert ("confusion" in drawn) == (config["data"]["labels"] > 0)
    assert call("sample", run, "--count", 2, "--out", "drawn.npz") == 0
