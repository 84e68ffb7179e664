"""The real thing, small: the published configurations through the installed command, on real data."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from needs import require

CONFIGS = Path(__file__).parents[1] / "configs"
pytestmark = pytest.mark.smoke


def fastflow(*argv, cwd: Path) -> str:
    """What the command prints; nothing but the progress bar may go to stderr."""
    done = subprocess.run([sys.executable, "-m", "fastflow", *map(str, argv)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    return done.stdout


def only_run(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def test_digits_train_eval_sample_figures(tmp_path):
    printed = fastflow("train", CONFIGS / "scnf-glow-digits.yaml", "--set", "steps=200", cwd=tmp_path)
    run = only_run(tmp_path)
    results = json.loads((run / "checkpoints/seed-0/final/state.json").read_text())["results"]
    assert results["error"] < 25.0
    assert results["bits_per_dim"] < 2.4
    assert f"{results['error']:.2f}" in printed
    pictures = ["curves", "samples-seed-0", "label-swaps-seed-0", "latents-seed-0", "confusion-seed-0",
                "interpolations-seed-0"]
    for name in pictures:
        assert f"figures/{name}.png" in printed
        assert (run / f"figures/{name}.png").stat().st_size > 5000
    assert f"{results['bits_per_dim']:.4f}" in fastflow("eval", run, cwd=tmp_path)
    fastflow("sample", run, "--label", 3, "--out", "three.png", cwd=tmp_path)
    assert (tmp_path / "three.png").stat().st_size > 2000
    assert "probe-seed-0.png" in fastflow("figures", run, "--out", "again", cwd=tmp_path)


def test_mnist_train(tmp_path):
    require("data")
    small = ["sampling.batch=32", "optimizer.lr=5e-3", "data.monitor=64"]
    small += [f"model.{size}" for size in ("trunk.hidden=8", "trunk.blocks=1", "head.hidden=32", "head.blocks=1")]
    few = ["--no-figures", "--set", "steps=60", "log_every=10"]
    printed = fastflow("train", CONFIGS / "scnf-glow-mnist.yaml", *few, *small, cwd=tmp_path)
    run = only_run(tmp_path)
    results = json.loads((run / "checkpoints/seed-0/final/state.json").read_text())["results"]
    assert results["bits_per_dim"] < 8.0  # of uniform noise
    assert sum(map(sum, results["confusion"])) == 10000
    losses = [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
              if line["split"] == "train"]
    assert losses[-1] < losses[0]
    assert f"{results['error']:.2f}" in printed
