"""The numbers of docs/results.md are those of the records."""

import json
import statistics
from pathlib import Path

import pytest

from fastflow.training.config_file import load_config

ROOT = Path(__file__).parents[1]
RECORDS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks/records/recipes").glob("*.json")}
STEPS = json.loads((ROOT / "benchmarks/records/recipe_steps_cpu.json").read_text())
TEXT = (ROOT / "docs/results.md").read_text()
FLAT = " ".join(TEXT.split())
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("|")]
SHORTENED = {"m1-mnist", "m1m2-mnist"}
VARIANTS = {"scnf-glow-digits-no-views", "scnf-glow-em-digits-no-views", "flowgmm-digits-views", "tzk-digits-longer",
            "flowgmm-circles-no-views", "scnf-glow-circles-no-views"}
CIRCLES = ("flowgmm-circles", "scnf-glow-circles")
DRAWS = {f"{recipe}-draw-{draw}" for recipe in CIRCLES for draw in (1, 2, 3)}
LETTERS = 7  # letters of a commit that the tables show
BITS = {"MNIST, prior": "bits_mnist", "MNIST, given the data set": "bits_mnist_given_group",
        "MNIST, given the digit": "bits_mnist_given_class", "Omniglot, prior": "bits_omniglot",
        "Omniglot, given the data set": "bits_omniglot_given_group"}


def row_of(recipe: str) -> list[str]:
    """The one row whose second cell begins with the recipe's file."""
    found = [row for row in ROWS if len(row) > 1 and row[1].startswith(f"{recipe}.yaml")]
    assert len(found) == 1, f"docs/results.md has {len(found)} rows of {recipe}.yaml"
    return found[0]


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def leaves(tree: dict) -> dict[tuple[str, ...], object]:
    """Values by their path."""
    return {(key, *inner): leaf for key, value in tree.items()
            for inner, leaf in (leaves(value).items() if isinstance(value, dict) else [((), value)])}


@pytest.mark.parametrize("recipe", sorted(set(RECORDS) - SHORTENED - VARIANTS - DRAWS))
def test_a_record_is_of_the_recipe(recipe):
    """But for settings that have come since."""
    now = leaves(load_config(ROOT / f"configs/{recipe}.yaml", ["seeds=3"]).model_dump(mode="json"))
    then = leaves(RECORDS[recipe]["config"])
    assert {key: value for key, value in then.items() if now.get(key) != value} == {}


@pytest.mark.parametrize("recipe", sorted(name for name in RECORDS if name.endswith("-digits") and name != "m1-digits"))
def test_digits(recipe):
    record, (_, _, error, bits, minutes, commit) = RECORDS[recipe], row_of(recipe)
    seeds = record["seeds"]
    assert [seed["seed"] for seed in seeds] == [0, 1, 2]
    assert error == spread([seed["error"] for seed in seeds], 2)
    measure = "bits_per_dim" if "bits_per_dim" in seeds[0] else "bits_per_dim_bound"
    assert spread([seed[measure] for seed in seeds], 3) in bits
    assert ("at most" in bits) == (measure == "bits_per_dim_bound")
    assert minutes == f"{statistics.mean(seed['minutes'] for seed in seeds):.1f}"
    assert commit == record["commit"][:LETTERS]


@pytest.mark.parametrize("variant", sorted(name for name in VARIANTS if name.endswith("views") and "digits" in name))
def test_variants_of_digits(variant):
    assert f"{spread([seed['error'] for seed in RECORDS[variant]['seeds']], 2)} %" in FLAT


def test_flowgmm_overfits_digits_too():
    seeds = RECORDS["flowgmm-digits-views"]["seeds"]
    test, train = (statistics.mean(each["bits_per_dim"] for each in some)
                   for some in (seeds, [seed["monitor"] for seed in seeds]))
    assert f"{test:.2f} bits/dim against {train:.2f} on unlabelled training images" in FLAT


def test_longer_tzk():
    (seed,) = RECORDS["tzk-digits-longer"]["seeds"]
    shorter = RECORDS["tzk-digits"]["seeds"][0]
    assert f"with `steps=600` seed 0 has {seed['error']:.2f} % instead of {shorter['error']:.2f} %" in FLAT


def best_accuracy(record: dict) -> str:
    """Of the restart of least training loss."""
    return f"{100 - min(record['seeds'], key=lambda seed: seed['loss'])['error']:.1f}"


def test_variants_of_circles():
    flowgmm, scnf = (best_accuracy(RECORDS[f"{recipe}-no-views"]) for recipe in CIRCLES)
    assert f"{flowgmm} % (FlowGMM) and {scnf} % (SCNF-GLOW)" in FLAT
    flowgmm, scnf = (", ".join(best_accuracy(RECORDS[f"{recipe}-draw-{draw}"]) for draw in (1, 2, 3))
                     for recipe in CIRCLES)
    assert f"FlowGMM {flowgmm} %, SCNF-GLOW {scnf} %" in FLAT


@pytest.mark.parametrize("recipe", sorted(name for name in RECORDS if name.endswith(("-moons", "-circles"))))
def test_points(recipe):
    record, (_, _, best, all_, seconds, commit) = RECORDS[recipe], row_of(recipe)
    seeds = record["seeds"]
    assert record["config"]["data"]["label_seed"] is not None, "not restarts: each seed has labels of its own"
    assert best == best_accuracy(record)
    assert all_ == ", ".join(f"{100 - seed['error']:.1f}" for seed in seeds)
    assert seconds == f"{60 * sum(seed['minutes'] for seed in seeds):.0f}"
    assert commit == record["commit"][:LETTERS]


@pytest.mark.parametrize("name", BITS)
def test_bits_of_tzk(name):
    (row,) = [row for row in ROWS if row[0] == name]
    assert row[2:] == [f"{seed[BITS[name]]:.3f}" for seed in RECORDS["tzk-mnist-omniglot"]["seeds"]]


def test_errors_of_tzk():
    (row,) = [row for row in ROWS if row[0].startswith("MNIST error by")]
    assert row[2:] == [f"{seed['error']:.2f}" for seed in RECORDS["tzk-mnist-omniglot"]["seeds"]]
    held_out = RECORDS["tzk-mnist-omniglot"]["seeds"][2]["monitor"]
    names = ("bits_mnist", "bits_mnist_given_group", "bits_mnist_given_class")
    assert "for seed 2 " + ", ".join(f"{held_out[name]:.3f}" for name in names) in FLAT
    assert f"commit {RECORDS['tzk-mnist-omniglot']['commit'][:LETTERS]}" in FLAT


@pytest.mark.parametrize("recipe", sorted({line["recipe"] for line in STEPS["steps"]}))
def test_cost_of_a_step(recipe):
    one, two = (line for line in STEPS["steps"] if line["recipe"] == recipe)
    assert (one["threads"], two["threads"]) == (1, 2)
    (row,) = [row for row in ROWS if row[0] == f"{recipe}.yaml"]
    medians = [f"{statistics.median(line['milliseconds']):.0f}" for line in (one, two)]
    assert row[1:] == [str(one["rows"]), *medians, str(one["steps"])]
    assert f"commit {STEPS['commit'][:LETTERS]}" in FLAT


def test_a_short_m1m2_on_mnist():
    stages = [RECORDS["m1-mnist"], RECORDS["m1m2-mnist"]]
    minutes = sum(stage["seeds"][0]["minutes"] for stage in stages)
    steps = " and ".join(str(stage["config"]["steps"]) for stage in stages)
    error = stages[1]["seeds"][0]["error"]
    assert f"In {minutes:.0f} minutes of one thread, {steps} steps, M1+M2 gets to {error:.2f} %" in FLAT
    assert f"commit {stages[1]['commit'][:LETTERS]}" in FLAT


def test_the_digits_example():
    rows = [line.strip("|").split("|") for line in (ROOT / "docs/digits.md").read_text().splitlines()]
    cells = {row[0].strip(): row[1:] for row in rows}
    for name, key, digits in (("error, %", "error", 2), ("bits/dim", "bits_per_dim", 4)):
        shown = [float(cell) for cell in cells[name]]
        values = [seed[key] for seed in RECORDS["scnf-glow-digits"]["seeds"]]
        assert shown == [round(value, digits) for value in (*values, statistics.mean(values))]
