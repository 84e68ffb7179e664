"""Every recipe whose data are at hand, shortened: it trains in the right direction in less than a minute."""

import json
import math
from pathlib import Path

import pytest
from needs import require
from test_smoke import CONFIGS, fastflow

pytestmark = pytest.mark.smoke

SMALL_CONV = ["sampling.batch=32", "optimizer.lr=5e-3", "data.monitor=64", "steps=40", "model.trunk.hidden=8",
              "model.trunk.blocks=1"]
SMALL_NVP = ["sampling.batch=32", "optimizer.lr=1e-3", "data.monitor=64", "steps=40", "model.trunk.hidden=4",
             "model.trunk.blocks=1", "model.trunk.doubling=false"]
SMALL_HEAD = ["model.head.hidden=32", "model.head.blocks=1"]
RECIPES = {  # settings, and the most error in percent where so few steps teach classes
    "scnf-glow-moons": (["steps=150", "seeds=1"], 15),
    "scnf-glow-circles": (["steps=150", "seeds=1"], 15),
    "flowgmm-moons": (["steps=120", "seeds=1", "model.trunk.hidden=128"], 15),
    "flowgmm-circles": (["steps=400", "seeds=1"], 20),
    "flowgmm-eight-gaussians": (["steps=120", "seeds=1", "model.trunk.hidden=128"], 30),
    "flowgmm-pinwheel": (["steps=300", "seeds=1", "model.trunk.hidden=128"], 30),
    "scnf-gmm-digits": (["steps=200"], 40),
    "scnf-glow-em-digits": (["steps=150"], 40),
    "conditional-digits": (["steps=60"], 60),
    "flowgmm-digits": (["steps=100"], 60),
    "flowgmm-cons-digits": (["steps=80"], 60),
    "tzk-digits": (["steps=60"], 40),
    "m1-digits": (["steps=600"], None),
    "m2-digits": (["steps=500"], 40),
    "m1m2-digits": (["steps=600"], 40),
    "scnf-gmm-mnist": (SMALL_CONV, None),
    "scnf-glow-em-mnist": (SMALL_CONV + SMALL_HEAD, None),
    "scnf-gmm-em-mnist": (SMALL_CONV, None),
    "flowgmm-mnist": (SMALL_NVP, None),
    "flowgmm-cons-mnist": (SMALL_NVP, None),
    "m1-mnist": (["steps=150", "optimizer.lr=1e-3", "model.init_std=null"], None),
    "m2-mnist": (["steps=60", "optimizer.lr=1e-3", "model.init_std=null"], None),
    "m1m2-mnist": (["steps=100", "optimizer.lr=1e-3", "model.init_std=null", "model.m1.init_std=null"], None),
    "tzk-mnist-omniglot": (["steps=80", "optimizer.lr=5e-3", "model.steps=4", "data.monitor=0"], None),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name, tmp_path):
    if "mnist" in name:
        require("data")
    settings, most = RECIPES[name]
    if name.startswith("m1m2"):
        m1 = name.replace("m1m2", "m1")
        fastflow("train", CONFIGS / f"{m1}.yaml", "--no-figures", "--out", "m1", "--set", *RECIPES[m1][0], cwd=tmp_path)
        settings = [*settings, "pretrained=m1"]
    fastflow("train", CONFIGS / f"{name}.yaml", "--no-figures", "--out", "run", "--set", "log_every=10", *settings,
             cwd=tmp_path)
    run = Path(tmp_path / "run")
    state = json.loads((run / "checkpoints/seed-0/final/state.json").read_text())
    results = state["results"]
    losses = [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
              if line["split"] == "train"]
    assert losses[-1] < losses[0]
    assert most is None or results["error"] < most
    assert results.get("bits_per_dim", 0.0) < math.log2(state["data"].get("levels", 256))  # of uniform noise
    # The more is known, the fewer bits.
    if name == "tzk-digits":
        assert results["bits_all_given_class"] < results["bits_all"]
    if name == "tzk-mnist-omniglot":
        assert results["bits_mnist_given_class"] < results["bits_mnist_given_group"] < results["bits_mnist"]
        assert results["bits_omniglot_given_group"] < results["bits_omniglot"]
    assert results.get("bits_per_dim_bound", 0.0) < 1.0  # of a fair coin a binary pixel
