"""The command line: what it makes, and that it repeats itself."""

import json
import os
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from reference_oracle import checkpoint
from small_run import CONFIG, WITHOUT_CLASSES, call, snapshot
from test_resume import outcome

from fastflow.models import SCNF
from fastflow.training import loop
from fastflow.training.record import read_metrics
from fastflow.training.restore import restore


def test_a_run_holds_all_it_should(trained):
    run = trained / "run"
    for name in ("config.yaml", "metrics.jsonl", "tensorboard/seed-0", "checkpoints/seed-1/final/model.safetensors"):
        assert (run / name).exists(), name
    assert yaml.safe_load((run / "config.yaml").read_text())["seeds"] == 2
    state = json.loads((run / "checkpoints/seed-1/final/state.json").read_text())
    assert state["seed"] == 1
    assert len(state["split"]["labelled"]) == 100
    assert {"torch", "fastflow", "threads"} <= state["versions"].keys()


def test_eval_repeats_the_numbers_of_the_run(trained, capsys):
    assert call("eval", trained / "run") == 0
    table = capsys.readouterr().out
    for seed in (0, 1):
        final = trained / f"run/checkpoints/seed-{seed}/final"
        results = json.loads((final / "state.json").read_text())["results"]
        assert f"{results['error']:.2f}" in table
        assert f"{results['bits_per_dim']:.4f}" in table
        assert call("eval", final) == 0
        assert table.splitlines()[1 + seed].split() == capsys.readouterr().out.splitlines()[1].split()
    assert "mean ± std" in table
    assert call("eval", trained / "run", "--split", "monitor") == 0
    monitored = [line for line in read_metrics(trained / "run/metrics.jsonl") if line["split"] == "monitor"]
    assert f"{monitored[-1]['bits_per_dim']:.4f}" in capsys.readouterr().out


def test_samples_are_repeatable_arrays_and_a_picture(trained, tmp_path, capsys):
    for name in ("a.npz", "b.npz"):
        assert call("sample", trained / "run", "--count", 3, "--seed", 4, "--out", tmp_path / name) == 0
    a, b = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert a["images"].shape == (30, 1, 8, 8)
    assert a["images"].dtype == np.uint8
    assert a["images"].max() <= 16
    assert a["labels"].tolist() == sorted(list(range(10)) * 3)
    assert (a["images"] == b["images"]).all()
    assert call("sample", trained / "run", "--label", 7, "--temperature", 0.5, "--out", tmp_path / "seven.png") == 0
    assert (tmp_path / "seven.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in ("a.npz", "b.npz", "seven.png")]


def test_figures_of_a_checkpoint(trained, tmp_path, capsys):
    assert call("figures", trained / "run/checkpoints/seed-1/final", "--out", tmp_path / "figures") == 0
    names = ("samples", "prototypes", "label-swaps", "interpolations", "latents", "confusion", "probe")
    expected = ["curves.png", *(f"{name}-seed-1.png" for name in names), "probe-seed-1.json"]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == set(expected)
    assert [Path(line.split()[1]).name for line in capsys.readouterr().out.splitlines()] == expected


def test_new_runs_get_names_of_their_own(work, capsys):
    for _ in range(2):
        assert call("train", "small.yaml", "--set", "steps=1", "--no-figures") == 0
    runs = sorted(Path("runs").iterdir())
    assert len(runs) == 2
    assert all(re.fullmatch(r"small-\d{8}-\d{6}(-2)?", run.name) for run in runs)
    assert str(runs[0]) in capsys.readouterr().out


def test_progress_says_whether_it_is_held_out(work, capsys):
    for hold_out, name in (("true", "held-out"), ("false", "unlabelled training")):
        assert call("train", "small.yaml", "--no-figures", "--set", "steps=1", f"data.hold_out={hold_out}") == 0
        assert f"step 1: {name} rows: error" in capsys.readouterr().out


def test_set_changes_the_configuration(work):
    assert call("train", "small.yaml", "--set", "optimizer.lr=1e-2", "steps=1", "--no-figures", "--set", "seed=5",
                "--out", "other") == 0
    config = yaml.safe_load(Path("other/config.yaml").read_text())
    assert (config["optimizer"]["lr"], config["steps"], config["seed"]) == (0.01, 1, 5)
    assert Path("other/checkpoints/seed-5/final").is_dir()


def test_resuming_a_finished_run_changes_nothing_and_adds_seeds(work, capsys):
    before = snapshot(work / "run")
    assert call("train", "run", "--resume", "--no-figures") == 0
    assert snapshot(work / "run") == before
    assert call("train", "run", "--resume", "--no-figures", "--set", "seeds=3") == 0
    assert "seed 2" in capsys.readouterr().out
    assert (work / "run/metrics.jsonl").read_bytes().startswith(before[work / "run/metrics.jsonl"])


@contextmanager
def during(step, action):
    """Inside, every training does `action` in the middle of step `step`."""
    def dropout(seed, now, device, original=loop.seed_dropout):
        original(seed, now, device)
        if now == step:
            action()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "seed_dropout", dropout)
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_resumes_exactly(work, capsys, number):
    config = ["small.yaml", "--set", "checkpoint_every=100", "--no-figures", "--out"]
    assert call("train", *config, "whole") == 0
    with during(2, lambda: os.kill(os.getpid(), number)):
        assert call("train", *config, "stopped") == 130
    assert "fastflow: interrupted; go on with: fastflow train stopped --resume\n" in capsys.readouterr().err
    assert (work / "stopped/checkpoints/seed-0/step-00000003").is_dir()
    assert call("train", "stopped", "--resume", "--no-figures") == 0
    shutil.rmtree(work / "stopped/checkpoints/seed-0/step-00000003")
    assert outcome(work / "stopped") == outcome(work / "whole")


class Killed(BaseException):
    """What no code catches, as a kill."""


def kill():
    raise Killed


def test_a_run_killed_resumed_and_interrupted_before_it_logs_resumes_exactly(work):
    config = ["small.yaml", "--no-figures", "--set", "steps=6", "log_every=5", "evaluate_every=6", "checkpoint_every=3",
              "keep=9", "--out"]
    assert call("train", *config, "whole") == 0
    with during(5, kill), pytest.raises(Killed):
        call("train", *config, "stopped")
    with during(3, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert call("train", "stopped", "--resume", "--no-figures") == 130
    assert call("train", "stopped", "--resume", "--no-figures") == 0
    shutil.rmtree(work / "stopped/checkpoints/seed-0/step-00000004")
    assert outcome(work / "stopped") == outcome(work / "whole")


def test_a_run_killed_before_its_first_checkpoint_starts_again(work):
    config = ["small.yaml", "--no-figures", "--set", "log_every=1", "--out"]
    assert call("train", *config, "whole") == 0
    with during(1, kill), pytest.raises(Killed):
        call("train", *config, "stopped")
    assert (work / "stopped/metrics.jsonl").stat().st_size
    assert call("train", "small.yaml", "--resume", *config[1:], "stopped") == 0
    assert outcome(work / "stopped") == outcome(work / "whole")


def test_divergence_is_one_line_and_no_checkpoint_of_it(work, capsys):
    assert call("train", "small.yaml", "--set", "optimizer.lr=1e8", "log_every=1", "--out", "diverged") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "training diverged" in error
    assert not list(Path("diverged").rglob("*.safetensors"))


def test_help_of_every_command(capsys):
    assert call() == 0
    for command in ((), ("train",), ("eval",), ("sample",), ("figures",), ("data",), ("bench",), ("doctor",)):
        assert call(*command, "--help") == 0
        assert "usage: fastflow" in capsys.readouterr().out


def test_doctor(capsys):
    assert call("doctor") == 0
    assert "reference" in capsys.readouterr().out


def test_pretrained_models_are_evaluated_sampled_and_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = torch.randint(0, 256, (30, 8, 8), generator=torch.Generator().manual_seed(0)).numpy()
    labels = np.arange(30) % 3
    np.savez("own.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    torch.save(checkpoint(), "model.torch")
    config = CONFIG | {
        "data": {"name": "npz", "path": "own.npz", "labels": 12},
        "model": {
            "trunk": {"kind": "conv", "hidden": 4},
            "head": {"kind": "flow", "context_features": 4, "steps": 2, "hidden": 5},
        },
    }
    Path("own.yaml").write_text(yaml.safe_dump(config))
    model = SCNF.from_reference(checkpoint(), prior=[1 / 3] * 3).float()
    wrong = (model.predict(torch.from_numpy(images)[:, None]) != torch.from_numpy(labels)).sum().item()
    assert call("eval", "own.yaml", "--pretrained", "model.torch") == 0
    assert f"{100 * wrong / 30:.2f}" in capsys.readouterr().out
    assert call("sample", "own.yaml", "--pretrained", "model.torch", "--count", 2, "--out", "own.npz.npz") == 0
    barely = ("--set", "optimizer.lr=1e-9", "optimizer.ema=null", "steps=1")
    assert call("train", "own.yaml", "--pretrained", "model.torch", *barely, "--no-figures", "--out", "run") == 0
    trained = restore(Path("run"))[0].model.state_dict()
    for name, value in model.state_dict().items():
        if "prior" not in name:
            torch.testing.assert_close(trained[name], value, atol=1e-8, rtol=1e-6, msg=name)
    os.rename("model.torch", "elsewhere")
    assert call("train", "run", "--resume", "--no-figures") == 0
    assert call("train", "run", "--resume", "--no-figures", "--set", "seeds=2") == 2
    assert "there is no file model.torch" in capsys.readouterr().err
    os.rename("elsewhere", "model.torch")
    assert call("train", "own.yaml", "--pretrained", "model.torch", "--set", "model.head.hidden=6") == 2
    message = "model.torch: head.flow.layers.2.conditioner.input.weight is (5, 12), expected (6, 12)"
    assert message in capsys.readouterr().err


def test_a_model_without_classes_is_trained_resumed_evaluated_sampled_and_drawn(work, capsys):
    assert call("train", "small.yaml", "--set", *WITHOUT_CLASSES, "--out", "flow") == 0
    printed = "".join(capsys.readouterr())
    assert "held-out rows: bits/dim" in printed
    assert "error" not in printed
    assert {path.name for path in Path("flow/figures").iterdir()} == {
        "curves.png", "samples-seed-0.png", "interpolations-seed-0.png", "latents-seed-0.png"}
    whole = outcome(work / "flow")
    for name in ("final", "step-00000004"):
        shutil.rmtree(work / "flow/checkpoints/seed-0" / name)
    assert call("train", "flow", "--resume", "--no-figures") == 0
    assert outcome(work / "flow") == whole
    results = json.loads((work / "flow/checkpoints/seed-0/final/state.json").read_text())["results"]
    assert results.keys() == {"bits_per_dim"}
    capsys.readouterr()
    assert call("eval", "flow") == 0
    assert capsys.readouterr().out.split() == ["bits/dim", "seed", "0", f"{results['bits_per_dim']:.4f}"]
    assert call("sample", "flow", "--count", 3, "--out", "own.npz") == 0
    assert {name: array.shape for name, array in np.load("own.npz").items()} == {"images": (3, 1, 8, 8)}
    assert call("sample", "flow", "--label", 0, "--out", "none.npz") == 2
    assert "sample: label is 0, but the model has no classes; leave it out" in capsys.readouterr().err
    assert not Path("none.npz").exists()
