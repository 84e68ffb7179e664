"""Run folders, checkpoints and the record of metrics, where the command line does not reach them."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from fastflow.training import checkpoint
from fastflow.training.checkpoint import Checkpoint, latest, load_checkpoint, prune, save_checkpoint, step_folder
from fastflow.training.config import Config
from fastflow.training.config_file import _keys, dump_config, load_config, parse_config
from fastflow.training.record import Recorder, read_metrics
from fastflow.training.results import table
from fastflow.training.run import newest_run

CONFIGS = Path(__file__).parents[1] / "configs"
PART = {"weight": torch.arange(6.0).view(2, 3).t(), "flag": torch.tensor(True), "count": torch.tensor(3)}


def test_checkpoint_holds_what_was_put_in(tmp_path):
    saved = Checkpoint({"step": 3, "rate": 0.1 + 0.2}, {"model": PART, "trainer": {"sum": torch.tensor(0.1)}})
    save_checkpoint(tmp_path / "step-3", saved)
    loaded = load_checkpoint(tmp_path / "step-3")
    assert loaded.state == saved.state
    assert loaded.tensors.keys() == saved.tensors.keys()
    for part, tensors in saved.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(loaded.tensors[part][name], value)
            assert loaded.tensors[part][name].dtype == value.dtype
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=tmp_path / "step-3", check=True)


def test_checkpoint_is_never_overwritten(tmp_path):
    save_checkpoint(tmp_path / "final", Checkpoint({"step": 1}, {"model": PART}))
    with pytest.raises(OSError, match="final"):
        save_checkpoint(tmp_path / "final", Checkpoint({"step": 2}, {"model": PART}))
    assert load_checkpoint(tmp_path / "final").state == {"step": 1}


def test_latest_and_prune(tmp_path):
    assert latest(tmp_path) is None
    for step in (5, 20, 100):
        save_checkpoint(step_folder(tmp_path, step), Checkpoint({"step": step}, {"model": PART}))
    (tmp_path / f"{checkpoint._PARTIAL}step-00000200").mkdir()
    assert load_checkpoint(latest(tmp_path)).state["step"] == 100
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000100"]
    save_checkpoint(tmp_path / "final", Checkpoint({"step": 100}, {"model": PART}))
    assert latest(tmp_path).name == "final"


def test_metrics_are_cut_back_to_a_position(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record = Recorder(path, tmp_path / "board", seed=0)
    record.write(1, "train", {"loss": 0.1 + 0.2, "confusion": [[1]]})
    position = record.position()
    record.write(2, "train", {"loss": 2.0})
    record.close()
    with path.open("a") as file:
        file.write('{"seed": 0, "st')
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    record = Recorder(path, tmp_path / "board", seed=0, step=1, position=position)
    assert record.position() == position
    record.write(2, "train", {"loss": 3.0})
    record.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 0.1 + 0.2), (2, 3.0)]
    assert [line["step"] for line in read_metrics(path, position)] == [2]
    for text, message in (("{\n", "line 1 is not JSON"), ("7\n", "line 1 is int, expected a JSON object")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"metrics.jsonl: {message}"):
            read_metrics(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metrics_that_are_not_finite_are_not_written(tmp_path, value):
    record = Recorder(tmp_path / "metrics.jsonl", tmp_path / "board", seed=0)
    with pytest.raises(FloatingPointError, match=f"train loss is {value} at step 7; lower optimizer.lr"):
        record.write(7, "train", {"loss": value})
    record.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_published_configurations_are_valid_and_survive_writing(tmp_path):
    for path in CONFIGS.glob("*.yaml"):
        config = load_config(path)
        (tmp_path / "config.yaml").write_text(dump_config(config))
        assert load_config(tmp_path / "config.yaml") == config
        assert parse_config(json.loads(json.dumps(config.model_dump())), "state.json") == config


def test_the_documentation_names_every_key():
    text = (CONFIGS.parent / "docs/training.md").read_text()
    assert [key for key in _keys(Config) if f"`{key.rpartition('.')[2]}`" not in text] == []


def test_newest_run_is_of_this_configuration(tmp_path):
    for name in ("digits-20250101-000000", "digits-20250102-000000", "digits-20250102-000000-2", "digits-big-20260101"):
        (tmp_path / name).mkdir()
    assert newest_run(tmp_path, "digits").name == "digits-20250102-000000-2"
    with pytest.raises(FileNotFoundError, match=r"mnist-\*: no run to resume"):
        newest_run(tmp_path, "mnist")


def test_table_gives_mean_and_sample_deviation():
    same = {"bits_per_dim": 2.0, "cross_entropy": 0.5}
    results = [{"seed": 0, "error": 4.0} | same, {"seed": 1, "error": 6.0} | same]
    lines = table(results).splitlines()
    assert re.split(r"\s{2,}", lines[-1]) == ["mean ± std", "5.00 ± 1.41", "2.0000 ± 0.0000", "0.5000 ± 0.0000"]
    assert len({len(line) for line in lines}) == 1
    assert len(table(results[:1]).splitlines()) == 2
