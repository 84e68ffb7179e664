"""Vectors: toy sets as their sources have them, the UCI and text sets of FlowGMM."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_data_tables import write_csv

from fastflow import data as sets
from fastflow.data import VectorData, digits, split_rows, standardize
from fastflow.training.build import load_data
from fastflow.training.config import DataConfig


def vectors(**changes) -> VectorData:
    random = torch.Generator().manual_seed(0)
    fields = {
        "name": "own", "classes": 3,
        "train_features": torch.randn(6, 2, generator=random) * torch.tensor([5.0, 0.1]) + 3.0,
        "train_labels": torch.tensor([0, 1, 2, -1, 0, 1]),
        "test_features": torch.randn(4, 2, generator=random), "test_labels": torch.tensor([0, 1, 2, 2]),
    }
    return VectorData(**(fields | changes))


def test_vectors_describe_themselves():
    data = vectors()
    about = data.describe()
    assert (about["name"], about["classes"], about["shape"], about["train"], about["test"]) == ("own", 3, [2], 6, 4)
    assert about == vectors().describe()
    assert about["sha256"] != vectors(test_labels=torch.tensor([0, 1, 2, 1])).describe()["sha256"]
    assert len(split_rows(data.train_labels.numpy(), data.classes, 3, seed=0).labelled) == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_features": torch.zeros(6, 2).double()}, TypeError, "own: train_features has dtype torch.float64"),
        ({"test_features": torch.zeros(4)}, ValueError, r"own: test_features has shape \(4,\), expected non-empty"),
        ({"test_features": torch.zeros(4, 3)}, ValueError, "own: test_features have 3 columns, expected 2"),
        ({"test_features": torch.tensor([[0, 0], [0, float("nan")], [1, 1], [2, 2]])}, ValueError,
         "test_features holds nan in row 1, column 1, expected numbers"),
        ({"train_labels": torch.zeros(5, dtype=torch.int64)}, ValueError, r"train_labels has shape \(5,\)"),
        ({"train_labels": torch.zeros(6)}, TypeError, "train_labels has dtype torch.float32"),
        ({"test_labels": torch.tensor([0, 1, -1, 2])}, ValueError, r"test_labels lies in \[-1, 2\], expected \[0, 2\]"),
        ({"train_labels": torch.tensor([0, 1, 3, 0, 0, 0])}, ValueError, r"lies in \[0, 3\], expected \[-1, 2\]"),
    ],
)
def test_vectors_refuse_what_they_are_not(changes, error, message):
    with pytest.raises(error, match=message):
        vectors(**changes)


def test_standardising_is_by_the_training_part():
    data = vectors()
    done = standardize(data)
    train, test = (part.double().numpy() for part in (data.train_features, data.test_features))
    mean, deviation = train.mean(0), train.std(0)
    assert np.allclose(done.train_features, (train - mean) / deviation, atol=1e-6)
    assert np.allclose(done.test_features, (test - mean) / deviation, rtol=1e-6)
    assert torch.equal(done.train_labels, data.train_labels)
    flat = torch.cat([data.train_features[:, :1], torch.full((6, 1), 0.1)], dim=1)
    with pytest.raises(ValueError, match="own: column 1 of train_features is constant"):
        standardize(replace(data, train_features=flat))


@pytest.mark.parametrize("draw", [sets.moons, sets.circles, sets.eight_gaussians, sets.pinwheel])
def test_toys_are_drawn_by_their_seed(draw):
    data = draw(train=100, test=50)
    assert (data.train_features.shape, data.test_features.shape) == ((100, 2), (50, 2))
    assert torch.equal(torch.unique(data.train_labels), torch.arange(data.classes))
    assert data.describe() == draw(train=100, test=50).describe()
    assert data.describe()["sha256"] != draw(train=100, test=50, seed=1).describe()["sha256"]
    assert not torch.isin(data.test_features[:, 0], data.train_features[:, 0]).any()
    with pytest.raises(ValueError, match=r"test is 1, expected at least"):
        draw(test=1)


def test_moons_and_circles_are_those_of_flowgmm():
    """Its code draws with seed 0 and labels these points by hand (flow_ssl/data/toy_datasets.py)."""
    moons, circles = sets.moons(), sets.circles()
    assert moons.train_labels[[0, 1, 3, 4, 5]].tolist() == [1] * 5
    assert moons.train_labels[[2, 6, 7, 10, 17]].tolist() == [0] * 5
    assert circles.train_labels[[0, 1, 3, 4]].tolist() == [1] * 4
    assert circles.train_labels[[2, 6, 7, 10, 17, 19, 34]].tolist() == [0] * 7
    radius = circles.train_features.norm(dim=1)
    assert (radius[circles.train_labels == 0] > 0.8).all()
    assert (radius[circles.train_labels == 1] < 0.65).all()


def test_eight_gaussians_lie_where_their_formula_says():
    data = sets.eight_gaussians(train=8000)
    x, labels = data.train_features, data.train_labels
    angle = torch.atan2(x[:, 1], x[:, 0]) / (torch.pi / 4)
    nearest = angle.round().long() % 8
    assert torch.bincount(nearest).float().std() < 60  # 1000 each, but for points that fall nearer to a neighbour
    for place, kind in enumerate([1, 2, 2, 2, 0, 0, 1, 1]):
        of = x[(nearest == place) & (labels == kind)]
        centre = torch.tensor([np.cos(place * np.pi / 4), np.sin(place * np.pi / 4)]) * 4 / 1.414
        assert (of.mean(0) - centre).norm() < 0.05
        assert (of.std(0) - 0.5 / 1.414).abs().max() < 0.03


def test_pinwheel_arms_straighten_when_unbent():
    data = sets.pinwheel(train=5000)
    x, labels = data.train_features.double() / 2, data.train_labels
    # Along an arm the angle is -(2 pi k / 5 + exp(r) / 4) up to the width across
    unbent = torch.atan2(x[:, 1], x[:, 0]) + 0.25 * x.norm(dim=1).exp() + labels * 2 * torch.pi / 5
    deviation = torch.atan2(unbent.sin(), unbent.cos())
    assert deviation[x.norm(dim=1) > 0.5].abs().max() < 1.0
    assert deviation.abs().median() < 0.12


def write_hepmass(folder, train: np.ndarray, test: np.ndarray) -> None:
    names = ["# label", *(f"f{i}" for i in range(27))]
    for part, rows, more in (("train", train, []), ("test", test, ["mass"])):
        lines = [",".join(names + more), *(",".join(map(repr, row.tolist())) for row in rows)]
        write_csv(folder / f"1000_{part}.csv.gz", lines)


def test_hepmass_leaves_out_discrete_columns_and_standardises(tmp_path):
    random = np.random.default_rng(1)
    train, test = (np.hstack([random.integers(0, 2, (rows, 1)), random.normal(3, 2, (rows, columns))])
                   for rows, columns in ((500, 27), (1000, 28)))  # the test file has a column more
    train[:, 5] = random.integers(0, 3, 500)  # its smallest value comes often
    write_hepmass(tmp_path, train, test)
    data = sets.hepmass(tmp_path)
    assert (data.train_features.shape, data.test_features.shape) == ((100, 26), (40, 26))
    assert torch.allclose(data.train_features.mean(0), torch.zeros(26), atol=1e-6)
    assert torch.allclose(data.train_features.std(0, correction=0), torch.ones(26), atol=1e-6)
    assert data.describe() == sets.hepmass(tmp_path).describe()
    draw = np.random.default_rng(0)
    chosen, tested = (part[draw.choice(len(part), rows, replace=False)] for part, rows in ((train, 100), (test, 40)))
    assert data.train_labels.tolist() == chosen[:, 0].tolist()
    assert data.test_labels.tolist() == tested[:, 0].tolist()
    raw = np.delete(chosen[:, 1:], 4, axis=1)
    expected = (np.delete(tested[:, 1:28], 4, axis=1) - raw.mean(0)) / raw.std(0)
    assert np.allclose(data.test_features, expected, atol=1e-5)


def test_hepmass_and_miniboone_name_the_file_at_fault(tmp_path):
    good = np.hstack([np.zeros((50, 1)), np.random.default_rng(0).normal(size=(50, 27))])
    for bad, message in ((good[:, :20], "not a table of 28 columns"),
                         (good + 5, "begins with '# label,f0,f1,.*, expected a line of names")):
        write_hepmass(tmp_path, bad, good)
        with pytest.raises(ValueError, match=f"1000_train.csv.gz: {message}"):
            sets.hepmass(tmp_path)
    write_hepmass(tmp_path, np.zeros((50, 28)), good)
    with pytest.raises(ValueError, match="smallest value of every column comes more than 5 times"):
        sets.hepmass(tmp_path)
    (tmp_path / "1000_test.csv.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"1000_test.csv.gz: no such file; get it from https://archive.ics"):
        sets.hepmass(tmp_path)
    path = tmp_path / "MiniBooNE_PID.txt"
    for text, message in (
        ("x\n", "not two counts and a table"),
        (" 2 1\n" + "1 " * 50 + "\n", r"the table is \(1, 50\), expected \(3, 50\)"),
        (" 1 1\n" + ("1 " * 50 + "\n") * 2, "1 rows of signal, expected 36499"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"MiniBooNE_PID.txt: {message}"):
            sets.miniboone(tmp_path)


def test_miniboone_is_balanced_and_split_once(tmp_path, monkeypatch):
    random = np.random.default_rng(2)
    rows = random.normal(5, 3, (100, 50))
    rows[:, 0] = np.arange(100)
    text = "  40   60\n" + "\n".join("  ".join(f"{value:.6E}" for value in row) for row in rows)
    (tmp_path / "MiniBooNE_PID.txt").write_text(text + "\n")
    monkeypatch.setitem(sets.miniboone.__globals__, "MINIBOONE_ROWS", {"signal": 40, "background": 60})
    data = sets.miniboone(tmp_path)
    assert (data.train_features.shape, data.test_features.shape) == ((72, 50), (8, 50))
    assert torch.bincount(data.train_labels).tolist() == [36, 36]
    assert torch.allclose(data.train_features.mean(0), torch.zeros(50), atol=1e-6)
    first = torch.cat([data.train_features[:, 0], data.test_features[:, 0]])
    order = torch.cat([data.train_labels, data.test_labels])[first.argsort()]
    assert order.tolist() == [1] * 40 + [0] * 40  # signal comes first in the file


def test_text_sets_are_embeddings_as_stored(tmp_path, monkeypatch):
    random = np.random.default_rng(3)
    for name, rows in (("ag_news_train", 8), ("ag_news_test", 4), ("yahoo_train", 20), ("yahoo_test", 12)):
        encodings = random.normal(size=(rows, 768)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", encodings=encodings, labels=np.arange(rows) % (4 if "ag" in name else 10))
    ag_news = sets.ag_news.__globals__["AG_NEWS"]
    with pytest.raises(ValueError, match=r"ag_news_train.npz: 8 rows, expected the 120000 of ag-news"):
        sets.ag_news(tmp_path)
    monkeypatch.setitem(sets.ag_news.__globals__, "AG_NEWS", replace(ag_news, train=8, test=4))
    monkeypatch.setitem(sets.yahoo.__globals__, "YAHOO_TEST", 10)
    data = sets.ag_news(tmp_path)
    assert np.array_equal(data.train_features, np.load(tmp_path / "ag_news_train.npz")["encodings"])
    assert (data.classes, data.test_labels.tolist()) == (4, [0, 1, 2, 3])
    yahoo = sets.yahoo(tmp_path)
    assert (len(yahoo.train_features), len(yahoo.test_features), yahoo.classes) == (20, 10, 10)
    np.savez(tmp_path / "yahoo_test.npz", encodings=encodings[:, :5], labels=np.arange(12) % 10)
    with pytest.raises(ValueError, match=r"yahoo_test.npz: rows of shape \(5,\), expected \(768,\) of yahoo"):
        sets.yahoo(tmp_path)
    np.savez(tmp_path / "yahoo_test.npz", encodings=encodings)
    with pytest.raises(ValueError, match=r"yahoo_test.npz: holds encodings, expected the arrays features"):
        sets.yahoo(tmp_path)
    np.savez(tmp_path / "yahoo_test.npz", encodings=encodings[0], labels=np.arange(12))
    with pytest.raises(TypeError, match=r"yahoo_test.npz: features are float32 \(768,\), expected numbers \[N, D\]"):
        sets.yahoo(tmp_path)


def test_components_are_identified_by_the_images_they_are_of():
    """Another machine's rounding moves the components, and a run must go on there."""
    config = DataConfig(name="digits", pca=3)
    data = load_data(config)
    assert data.describe()["sha256"] == digits().describe()["sha256"]
    moved = replace(data, train_features=data.train_features + 1e-6)
    assert moved.describe() == data.describe()
    assert replace(moved, origin=None).describe() != data.describe()
    assert load_data(DataConfig(name="digits", pca=4)).describe() != data.describe()
