"""The command line: what it makes, that it repeats itself, and that a mistake is one line and changes nothing."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from reference_oracle import checkpoint
from test_resume import outcome
from tiny_flow import SMALL

from fastflow import cli
from fastflow.models import SCNF
from fastflow.training import loop
from fastflow.training.record import read_metrics
from fastflow.training.restore import restore
from fastflow.training.run import locked

CONFIG = SMALL | {"log_every": 2, "evaluate_every": 2, "checkpoint_every": 2}
WITHOUT_CLASSES = ("data.labels=0", "model.head={kind: normal}", "loss={}")


def call(*argv) -> int:
    try:
        return cli.main([str(part) for part in argv])
    except SystemExit as stop:
        return stop.code


def snapshot(folder: Path) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with small.yaml and the finished run `run` of it, two seeds."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    assert call("train", folder / "small.yaml", "--set", "seeds=2", "--no-figures", "--out", folder / "run") == 0
    return folder


@pytest.fixture
def work(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it to spoil, as working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    expected = ["curves.png", *(f"{name}-seed-1.png" for name in ("samples", "label-swaps", "latents", "confusion"))]
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
        assert f"step 1: {name} images: error" in capsys.readouterr().out


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_resumes_exactly(work, monkeypatch, capsys, number):
    config = ["small.yaml", "--set", "checkpoint_every=100", "--no-figures", "--out"]
    assert call("train", *config, "whole") == 0

    def interrupt(seed, step, device, original=loop.seed_dropout):
        original(seed, step, device)
        if step == 2:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "seed_dropout", interrupt)
        assert call("train", *config, "stopped") == 130
    assert "fastflow: interrupted; go on with: fastflow train stopped --resume\n" in capsys.readouterr().err
    assert (work / "stopped/checkpoints/seed-0/step-00000003").is_dir()
    assert call("train", "stopped", "--resume", "--no-figures") == 0
    shutil.rmtree(work / "stopped/checkpoints/seed-0/step-00000003")
    assert outcome(work / "stopped") == outcome(work / "whole")


def test_divergence_is_one_line_and_no_checkpoint_of_it(work, capsys):
    assert call("train", "small.yaml", "--set", "optimizer.lr=1e8", "log_every=1", "--out", "diverged") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "training diverged" in error
    assert not list(Path("diverged").rglob("*.safetensors"))


def test_help_of_every_command(capsys):
    assert call() == 0
    for command in ((), ("train",), ("eval",), ("sample",), ("figures",), ("bench",), ("doctor",)):
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
    assert call("train", "own.yaml", "--pretrained", "model.torch", "--set", "model.head.hidden=6") == 2
    message = "model.torch: head.flow.layers.2.conditioner.input.weight is (5, 12), expected (6, 12)"
    assert message in capsys.readouterr().err


def test_a_model_without_classes_is_trained_resumed_evaluated_sampled_and_drawn(work, capsys):
    assert call("train", "small.yaml", "--set", *WITHOUT_CLASSES, "--out", "flow") == 0
    printed = "".join(capsys.readouterr())
    assert "held-out images: bits/dim" in printed
    assert "error" not in printed
    assert {path.name for path in Path("flow/figures").iterdir()} == {"curves.png", "samples-seed-0.png"}
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


SMALL_SET = ("train", "small.yaml", "--no-figures", "--set")
BAD = {
    "no such command": (("trian",), "invalid choice: 'trian'"),
    "no such option": (("train", "small.yaml", "--sed"), "unrecognized arguments: --sed"),
    "missing file": (("train", "absent.yaml"), "absent.yaml: no such file"),
    "folder": (("train", "run"), "run is a folder, expected a YAML file; add --resume"),
    "not YAML": (("train", "broken.yaml"), "broken.yaml: not valid YAML"),
    "not a mapping": (("train", "list.yaml"), "list.yaml: expected a mapping of sections"),
    "typo": ((*SMALL_SET, "optimizer.learning_rate=1"), "unknown key optimizer.learning_rate"),
    "suggestion": ((*SMALL_SET, "optimiser.lr=1"), "unknown key optimiser; did you mean optimizer?"),
    "suggestion inside": ((*SMALL_SET, "model.trunk.hiden=1"), "did you mean model.trunk.hidden?"),
    "wrong section": ((*SMALL_SET, "lr=1"), "unknown key lr; did you mean optimizer.lr?"),
    "wrong type": ((*SMALL_SET, "steps=many"), "steps is 'many': input should be a valid integer"),
    "out of range": ((*SMALL_SET, "optimizer.lr=-1"), "optimizer.lr is -1: input should be greater than 0"),
    "not finite": ((*SMALL_SET, "optimizer.lr=.nan"), "optimizer.lr is nan: input should be a finite number"),
    "kind": ((*SMALL_SET, "model.trunk.kind=cov"), "model.trunk.kind is 'cov', expected 'conv', 'vector'"),
    "no value": ((*SMALL_SET, "steps"), "--set steps: expected key=value"),
    "value as section": ((*SMALL_SET, "steps.more=1"), "--set steps.more=1: steps is a value, not a section"),
    "too many labels": ((*SMALL_SET, "data.labels=1290"), "data.monitor is 1290 + 30, expected at most 1297"),
    "labels without classes": ((*SMALL_SET, "model.head={kind: normal}"), "data.labels is 100, expected 0: a model"),
    "loss without classes": ((*SMALL_SET, *WITHOUT_CLASSES, "loss.view=1"), "loss.view is 1.0, expected 0: a model"),
    "too few labels": ((*SMALL_SET, "data.labels=9"), "data.labels is 9, expected 0 or at least 10"),
    "nothing to draw": ((*SMALL_SET, "sampling.labelled=0", "data.labels=1297", "data.monitor=0"), "no row has weight"),
    "no MNIST": ((*SMALL_SET, "data.name=mnist"), "FASTFLOW_DATA"),
    "no MNIST there": ((*SMALL_SET, "data.name=mnist", "data.path=run"), "run/train-images-idx3-ubyte.gz: no such"),
    "no archive": ((*SMALL_SET, "data.name=npz"), "data.path is missing"),
    "impossible shape": (("train", "conv.yaml"), "conv_trunk: image is 8 x 8, expected at least 32 x 32"),
    "no pretrained": (("train", "small.yaml", "--pretrained", "absent.torch"), "there is no file absent.torch"),
    "not a pretrained": (("eval", "small.yaml", "--pretrained", "broken.yaml"), "broken.yaml is no checkpoint"),
    "not empty": (("train", "small.yaml", "--out", "run"), "run exists and is not empty; add --resume"),
    "a file": (("train", "small.yaml", "--out", "small.yaml"), "small.yaml exists and is not empty"),
    "nothing to resume": (("train", "small.yaml", "--resume"), "runs/small-*: no run to resume"),
    "no such run": (("train", "small.yaml", "--resume", "--out", "absent"), "absent: no such run to resume"),
    "another config": (("train", "run", "--resume", "--set", "optimizer.lr=0.5"), "optimizer.lr is 0.001 in this run"),
    "fewer seeds": (("train", "run", "--resume", "--set", "seeds=1"), "seeds is 2 in this run"),
    "eval of nothing": (("eval", "absent"), "absent: no such run or checkpoint"),
    "eval of no run": (("eval", "."), ".: neither a checkpoint nor a run"),
    "eval of a config": (("eval", "small.yaml"), "small.yaml: neither a checkpoint nor a run"),
    "no such label": (("sample", "run", "--label", "10"), "expected 0 to 9"),
    "no samples": (("sample", "run", "--count", "0"), "count is 0, expected at least 1"),
    "no picture": (("sample", "run", "--out", "small.yaml"), "expected a name that ends in .png or .npz"),
    "figures of nothing": (("figures", "absent"), "absent: no such run or checkpoint"),
}


@pytest.mark.parametrize(("argv", "message"), BAD.values(), ids=BAD.keys())
def test_a_mistake_is_one_line_and_changes_nothing(work, monkeypatch, capfd, argv, message):
    monkeypatch.delenv("FASTFLOW_DATA", raising=False)
    (work / "broken.yaml").write_text("data: {name: [\n")
    (work / "list.yaml").write_text("- 1\n")
    trunk = {"kind": "conv", "scales": 5, "hidden": 4, "blocks": 1}
    (work / "conv.yaml").write_text(yaml.safe_dump(CONFIG | {"model": CONFIG["model"] | {"trunk": trunk}}))
    before = snapshot(work)
    assert call(*argv) == 2
    output = capfd.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.err.startswith("fastflow")
    assert snapshot(work) == before
    assert not (work / "runs").exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "flipped bit": ("average.safetensors", flip),
    "truncated": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:100])),
    "empty state": ("state.json", lambda path: path.write_text("")),
    "missing file": ("model.safetensors", Path.unlink),
    "garbled sums": ("SHA256SUMS", lambda path: path.write_bytes(b"\xff\n")),
    "missing sums": ("SHA256SUMS", Path.unlink),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_named_and_left_alone(work, capfd, name, damage):
    damage(work / "run/checkpoints/seed-1/final" / name)
    before = snapshot(work)
    for argv in (("train", "run", "--resume"), ("eval", "run"), ("sample", "run/checkpoints/seed-1/final")):
        assert call(*argv) == 2
        output = capfd.readouterr()
        assert output.err.count("\n") == 1
        assert name in output.err
        assert "damaged checkpoint" in output.err or "not a checkpoint" in output.err
        assert snapshot(work) == before


def test_shortened_metrics_are_noticed(work, capfd):
    shutil.rmtree(work / "run/checkpoints/seed-1/final")
    (work / "run/metrics.jsonl").write_text("")
    assert call("train", "run", "--resume") == 2
    assert "metrics.jsonl: 0 bytes, the checkpoint expects at least" in capfd.readouterr().err


def test_other_data_is_noticed(work, capfd):
    images = np.random.default_rng(0).integers(0, 16, (40, 8, 8))
    arrays = {"train_images": images, "train_labels": np.arange(40) % 10, "test_images": images[:20],
              "test_labels": np.arange(20) % 10}
    np.savez(work / "own.npz", **arrays)
    own = ["--set", "data={name: npz, path: own.npz, levels: 17, labels: 10}", "--no-figures"]
    assert call("train", "small.yaml", *own, "--out", "own") == 0
    np.savez(work / "own.npz", **arrays | {"test_labels": np.arange(20) % 10 // 2})
    capfd.readouterr()
    assert call("eval", "own") == 2
    assert "is not the data of the checkpoint" in capfd.readouterr().err


def test_two_processes_do_not_train_in_one_folder(work, capfd):
    with locked(work / "run"):
        assert call("train", "run", "--resume") == 2
    assert "another process is training in this folder" in capfd.readouterr().err


def test_a_missing_package_is_named(work, monkeypatch, capfd):
    monkeypatch.delitem(sys.modules, "fastflow.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert call("figures", "run") == 2
    assert "the package matplotlib is missing" in capfd.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_cuda_is_said(work, capfd):
    assert call("eval", "run", "--device", "cuda") == 2
    assert "PyTorch sees no CUDA device" in capfd.readouterr().err
