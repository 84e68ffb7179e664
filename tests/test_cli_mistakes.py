"""The command line: a mistake is one line and changes nothing, and damage is named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_run import CONFIG, WITHOUT_CLASSES, call, snapshot

from fastflow.training.run import locked

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
    "too large a number": ((*SMALL_SET, "steps=4294967297"), "steps is 4294967297: input should be at most 429"),
    "too large a seed": ((*SMALL_SET, "seed=4294967295", "seeds=2"), "seed + seeds is 4294967295 + 2, expected at mo"),
    "no warm-up": ((*SMALL_SET, "schedule.warmup=5"), "schedule.warmup is 5, expected 0 for linear"),
    "path of digits": ((*SMALL_SET, "data.path=run"), "data.path is 'run', expected none"),
    "levels of digits": ((*SMALL_SET, "data.levels=17"), "data.levels is 17, expected none: digits has its own"),
    "too deep": (("train", "deep.yaml"), "deep.yaml: not valid YAML: maximum recursion depth"),
    "too deep a value": ((*SMALL_SET, "seed=" + "[" * 3000), ": not a YAML value: maximum recursion depth"),
    "no such day": ((*SMALL_SET, "seed=2001-99-99"), "--set seed=2001-99-99: not a YAML value"),
    "too large a model": ((*SMALL_SET, "model.trunk.hidden=3000000"), "not enough memory for a batch, model or count"),
    "too large a batch": ((*SMALL_SET, "sampling.batch=4000000000"), "not enough memory for a batch, model or count"),
    "too many samples": (("sample", "run", "--count", "100000000000"), "not enough memory for a batch, model or count"),
    "endless samples": (("sample", "run", "--count", "1" + "0" * 18), "not enough memory for a batch, model or count"),
    "too many labels": ((*SMALL_SET, "data.labels=1290"), "data.monitor is 1290 + 30, expected at most 1297"),
    "labels without classes": ((*SMALL_SET, "model.head={kind: normal}"), "data.labels is 100, expected 0: a model"),
    "loss without classes": ((*SMALL_SET, *WITHOUT_CLASSES, "loss.view=1"), "loss.view is 1.0, expected 0: a model"),
    "too few labels": ((*SMALL_SET, "data.labels=9"), "data.labels is 9, expected 0 or at least 10"),
    "nothing to draw": ((*SMALL_SET, "sampling.labelled=0", "data.labels=1297", "data.monitor=0"), "no row has weight"),
    "no MNIST": ((*SMALL_SET, "data.name=mnist"), "FASTFLOW_DATA"),
    "no MNIST there": ((*SMALL_SET, "data.name=mnist", "data.path=run"), "run/train-images-idx3-ubyte.gz: no such"),
    "no archive": ((*SMALL_SET, "data.name=npz"), "data.path is missing"),
    "impossible shape": (("train", "conv.yaml"), "conv_trunk: image is 8 x 8, expected at least 32 x 32"),
    "images for points": ((*SMALL_SET, "data={name: moons, labels: 4}", "model.trunk={kind: conv}", "loss={}"),
                          "model.trunk.kind is conv, a flow of images, but the data are vectors of shape (2,)"),
    "points for images": ((*SMALL_SET, "model={kind: flowgmm, trunk: {kind: tabular}}", "loss={}"),
                          "model.trunk.kind is tabular, a flow of vectors, but the data are images of shape (1, 8, 8)"),
    "moved vectors": ((*SMALL_SET, "data.pca=5", "augmentation.rotation=8"),
                      "loss.consistency and augmentation move images, but digits pca 5 has vectors"),
    "binary vectors": ((*SMALL_SET, "data={name: moons, labels: 4}", "model={kind: m2}", "loss={}"),
                       "model.likelihood is bernoulli, expected gaussian: the data are vectors"),
    "no width": ((*SMALL_SET, "model={kind: m2, hidden: [-1]}", "loss={}"), "model.hidden.0 is -1: input should be"),
    "M2 without labels": ((*SMALL_SET, "model={kind: m2}", "loss={}", "data.labels=0"), "data.labels is 0, expected"),
    "M2 that sees no label": ((*SMALL_SET, "model={kind: m2}", "loss={}", "sampling.labelled=0"),
                              "sampling.labelled is 0.0, expected more: no labelled row"),
    "loss of another": ((*SMALL_SET, "model={kind: m2}", "loss={view: 1}"), "loss.view is 1.0, expected 0.0: m2 has"),
    "M1+M2 without M1": ((*SMALL_SET, "model={kind: m1m2}", "loss={}"), "pretrained is missing, expected the run"),
    "M1+M2 of another": ((*SMALL_SET, "model={kind: m1m2}", "loss={}", "pretrained=run"),
                         "pretrained is run, a run of scnf, expected one of an m1"),
    "no head": ((*SMALL_SET, "model={kind: m1}", "data.labels=0", "loss={}", "optimizer.head_lr=1"),
                "optimizer.head_lr is 1.0, expected none: the model has no head that trains"),
    "EM and batch norm": ((*SMALL_SET, "model={kind: flowgmm, trunk: {kind: real_nvp}}", "loss={em_steps: 2}"),
                          "loss.em_steps or em_refresh is set, expected neither for a real_nvp trunk"),
    "idle setting": ((*SMALL_SET, "loss={consistency_ramp: 5}"), "loss.consistency_ramp is 5, expected 0: loss"),
    "pretrained M2": (("eval", "m2.yaml", "--pretrained", "broken.yaml"), "model.kind is m2, expected scnf: "),
    "no pretrained": (("train", "small.yaml", "--pretrained", "absent.torch"), "there is no file absent.torch"),
    "not a pretrained": (("eval", "small.yaml", "--pretrained", "broken.yaml"), "broken.yaml is no checkpoint"),
    "not empty": (("train", "small.yaml", "--out", "run"), "run exists and is not empty; add --resume"),
    "a file": (("train", "small.yaml", "--out", "small.yaml"), "small.yaml exists and is not empty"),
    "nothing to resume": (("train", "small.yaml", "--resume"), "runs/small-*: no run to resume"),
    "no such run": (("train", "small.yaml", "--resume", "--out", "absent"), "absent: no such run to resume"),
    "no run at all": (("train", "small.yaml", "--resume", "--out", "own"), "own holds metrics.jsonl and no config"),
    "two folders": (("train", "run", "--resume", "--out", "own"), "--out is own, expected none: run is the"),
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
    (work / "deep.yaml").write_text("[" * 3000)
    (work / "m2.yaml").write_text(yaml.safe_dump(CONFIG | {"model": {"kind": "m2"}, "loss": {}}))
    trunk = {"kind": "conv", "scales": 5, "hidden": 4, "blocks": 1}
    (work / "conv.yaml").write_text(yaml.safe_dump(CONFIG | {"model": CONFIG["model"] | {"trunk": trunk}}))
    (work / "own").mkdir()
    (work / "own/metrics.jsonl").write_text("{}\n")
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


@pytest.mark.parametrize("lost", ["checkpoints", "checkpoints/seed-0", "checkpoints/seed-0/final"])
def test_no_line_of_metrics_is_lost_with_a_checkpoint(work, capfd, lost):
    shutil.rmtree(work / "run" / lost)
    before = snapshot(work)
    assert call("train", "run", "--resume") == 2
    error = capfd.readouterr().err
    assert "metrics.jsonl: going on with seed 0 would cut off step" in error
    assert error.count("\n") == 1
    assert snapshot(work) == before


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


@pytest.mark.parametrize(("variable", "value", "message"), [
    ("FASTFLOW_BACKEND", "bogus", "fastflow: FASTFLOW_BACKEND: backend is 'bogus', expected one of auto, reference"),
    ("FASTFLOW_BACKEND", "triton", ": backend 'triton' was asked for and"),
    ("FASTFLOW_CPU_ISA", "avx9", "FASTFLOW_CPU_ISA is 'avx9': set it to baseline, avx2 or avx512"),
])
def test_a_backend_that_cannot_serve_is_said_before_anything_is_made(work, variable, value, message):
    before = snapshot(work)
    code = ("from small_run import call; print([call(*command.split()) for command in "
            "('train small.yaml --out new', 'eval run --device cpu', 'doctor')])")
    environment = os.environ | {variable: value, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    codes = [2, 2, 2 if value == "bogus" else 0]
    assert done.stdout.endswith(f"{codes}\n")
    assert [message in line for line in done.stderr.splitlines()] == [True] * codes.count(2)
    assert snapshot(work) == before
    assert not (work / "new").exists()


def test_few_images_are_enough_and_none_is_said_for_what_it_is(work, capfd):
    run = ("train", "small.yaml", "--out", "bare", "--set", "steps=1", "data.labels=0", "data.monitor=0")
    images = np.random.default_rng(0).integers(0, 16, (40, 8, 8))
    np.savez(work / "own.npz", train_images=images, train_labels=np.full(40, -1), test_images=images[:3],
             test_labels=np.arange(3))
    assert call(*run, "data.name=npz", "data.path=own.npz", "data.levels=17", "model.prior=uniform") == 0
    assert "no picture of the latents: 3 test images" in capfd.readouterr().err
    assert {path.stem for path in Path("bare/figures").iterdir()} >= {"label-swaps-seed-0", "confusion-seed-0"}
    for split, reason in (("train", "no training image has a label"), ("monitor", "the run was trained with data.mon")):
        assert call("eval", "bare", "--split", split) == 2
        assert f"seed 0: no images to evaluate on: {reason}" in capfd.readouterr().err


def test_two_processes_do_not_train_in_one_folder(work, capfd):
    with locked(work / "run"):
        assert call("train", "run", "--resume") == 2
    assert "another process is training in this folder" in capfd.readouterr().err


def test_a_missing_package_is_named(work, monkeypatch, capfd):
    for name in [name for name in sys.modules if name.startswith("fastflow.figures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert call("figures", "run") == 2
    assert "the package matplotlib is missing" in capfd.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_cuda_is_said(work, capfd):
    assert call("eval", "run", "--device", "cuda") == 2
    assert "PyTorch sees no CUDA device" in capfd.readouterr().err
