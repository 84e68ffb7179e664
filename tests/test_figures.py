"""Pictures: what each model offers is drawn, and shows what it says."""

import numpy as np
import pytest
import torch
from flowgmm_cases import small_image, small_toy
from scnf_cases import small
from torch import nn
from tzk_cases import images as tzk_images
from vae_cases import scatter

from fastflow.data import ImageData, VectorData
from fastflow.figures import draw_samples, save_samples
from fastflow.figures.curves import curves
from fastflow.figures.draw import pictures
from fastflow.figures.latents import POINTS, confusion, latents
from fastflow.figures.points import points
from fastflow.figures.samples import samples_that_are_finite
from fastflow.models import M1, M1M2, M2, SCNF


def image_data(classes: int = 3, train: int = 30, test: int = 12) -> ImageData:
    generator = torch.Generator().manual_seed(1)
    parts = {}
    for part, rows in (("train", train), ("test", test)):
        parts[f"{part}_images"] = torch.randint(17, (rows, 1, 8, 8), generator=generator, dtype=torch.uint8)
        parts[f"{part}_labels"] = torch.arange(rows) % classes
    return ImageData("random", 17, classes, **parts)


def vector_data(features: int, classes: int = 3, rows: int = 40) -> VectorData:
    x, labels = torch.randn(rows, features), torch.arange(rows) % classes
    return VectorData("random", classes, x, labels, x[:20].clone(), labels[:20])


def m1() -> M1:
    return scatter(M1((1, 8, 8), 4, (6,)), 0.3)


def m1m2() -> M1M2:
    return M1M2(m1(), scatter(M2((3,), 3, 4, (5,), "gaussian"), 0.3), torch.tensor([0, 2, 3]))


def plain_flow() -> SCNF:
    model = SCNF.build((1, 8, 8), 17, 3, trunk={"kind": "vector", "steps": 1, "hidden": 8}, head={"kind": "normal"})
    model.initialize(image_data().train_images, noise=torch.rand(30, 1, 8, 8))
    return model


OF_IMAGES = {
    small: {"samples", "prototypes", "label-swaps", "interpolations", "latents", "confusion"},
    plain_flow: {"samples", "interpolations", "latents"},
    small_image: {"samples", "prototypes", "interpolations", "latents", "confusion"},
    lambda: tzk_images()[0]: {"samples", "prototypes", "interpolations", "latents", "confusion"},
    m1: {"samples", "reconstructions", "latents"},
    lambda: scatter(M2((1, 8, 8), 3, 4, (5,)), 0.3): {"samples", "prototypes", "analogies", "style-planes",
                                                     "styles", "latents", "confusion"},
    m1m2: {"samples", "prototypes", "analogies", "style-planes", "styles", "latents", "confusion"},
}


@pytest.mark.parametrize(("make", "names"), OF_IMAGES.items(),
                         ids=["SCNF", "flow", "FlowGMM", "TzK", "M1", "M2", "M1M2"])
def test_models_of_images_show_what_they_offer(make, names, tmp_path):
    model = make().eval()
    chosen = pictures(model, image_data(2 if model.classes == 2 else 3), [0, 1, 2], 0)
    assert chosen.keys() == names
    for name, draw in chosen.items():
        draw().savefig(tmp_path / f"{name}.png")


@pytest.mark.parametrize(("features", "names"), [(2, {"points", "latents", "confusion"}),
                                                 (5, {"latents", "confusion"})])
def test_models_of_vectors_show_what_they_offer(features, names, tmp_path):
    model = scatter(M2((features,), 3, 3, (5,), "gaussian"), 0.3).eval()
    chosen = pictures(model, vector_data(features), [0, 1, 2], 0)
    assert chosen.keys() == names
    for name, draw in chosen.items():
        draw().savefig(tmp_path / f"{name}.png")


@pytest.mark.parametrize("make", [small, small_image, lambda: tzk_images()[0]], ids=["SCNF", "FlowGMM", "TzK"])
def test_interpolations_begin_and_end_at_the_images(make):
    model, x = make().eval(), image_data().test_images
    between = model.interpolate(x[:3], x[3:6], 5)
    assert between.shape == (5, 3, 1, 8, 8)
    torch.testing.assert_close(between[[0, -1]], (torch.stack([x[:3], x[3:6]]) + 0.5) / 17, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match=r"interpolate: second has shape \(2, 1, 8, 8\), expected \(3, 1, 8, 8\)"):
        model.interpolate(x[:3], x[:2], 5)


def test_latents_of_the_plane_are_drawn_as_they_are_with_the_class_means():
    model, data = small_toy(3), vector_data(2)
    (panel,) = latents(model, data).axes
    *of_classes, stars = [np.asarray(drawn.get_offsets()) for drawn in panel.collections]
    z = model.embed(data.test_features).detach()
    for label, places in enumerate(of_classes):
        np.testing.assert_allclose(places, z[data.test_labels == label], rtol=1e-6)
    np.testing.assert_allclose(stars, model.head.means.detach(), rtol=1e-6)


def test_points_have_regions_contours_and_marks():
    data, model = vector_data(2), small_toy(3)
    left, right = points(model, data, [4, 7], 0).axes
    everything, labelled = left.collections[-2:]
    assert len(everything.get_offsets()) == 40
    np.testing.assert_array_equal(labelled.get_offsets(), data.train_features[[4, 7]])
    assert left.images
    assert len(left.collections) == 3  # contours too
    *of_classes, prototypes = [drawn.get_offsets() for drawn in right.collections]
    assert [len(drawn) for drawn in of_classes] == [334] * 3
    np.testing.assert_allclose(prototypes, model.prototypes(), rtol=1e-6)


def test_confusion_counts_the_rows_whose_class_is_known():
    class Oracle(nn.Module):
        classes = 3

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def predict(self, x):
            return x[:, 0].long()

    labels = torch.tensor([0, 1, 2, 2, 0, 1])
    data = VectorData("given", 3, torch.zeros(2, 2), torch.zeros(2).long(), torch.tensor([[0.0], [1], [2], [1], [0],
                      [1]]).expand(6, 2), labels)
    figure = confusion(Oracle(), data)
    texts = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in figure.axes[0].texts}
    assert texts == {(0, 0): "2", (1, 1): "2", (2, 2): "1", (2, 1): "1"}
    assert "6 test rows, error 16.67 %" in figure.axes[0].get_title("left")


def test_curves_of_whatever_was_logged():
    lines = [
        {"seed": 0, "step": 1, "split": "train", "nll_labelled": 2.0, "nll_unlabelled": 3.0, "pseudo_share": 0.0,
         "temper": 1.5, "lr": 0.1},
        {"seed": 0, "step": 2, "split": "train", "nll_labelled": 1.0, "nll_unlabelled": 2.0, "pseudo_share": 0.0,
         "lr": 0.1},
        {"seed": 0, "step": 2, "split": "monitor", "error": 4.0, "confusion": [[1]]},
        {"seed": 0, "step": 2, "split": "test", "error": 5.0},
    ]
    figure = curves(lines, "held out")
    drawn = {panel.get_title("left"): panel for panel in figure.axes}
    assert list(drawn) == ["training: $-\\log\\,p$, nats a row", "error, %", "temper"]
    unlabelled, labelled = drawn["training: $-\\log\\,p$, nats a row"].lines
    assert (list(unlabelled.get_ydata()), list(labelled.get_ydata())) == ([3.0, 2.0], [2.0, 1.0])
    assert [list(line.get_ydata()) for line in drawn["error, %"].lines] == [[4.0], [5.0]]
    assert [text.get_text() for text in drawn["error, %"].get_legend().texts] == ["held out", "test, at the end"]
    assert list(drawn["temper"].lines[0].get_xdata()) == [1]


def test_samples_are_saved_as_the_model_has_them(tmp_path):
    options = {"seed": 3, "temperature": 0.5}
    save_samples(m1(), tmp_path / "m1.npz", None, 4, **options)
    (images,) = np.load(tmp_path / "m1.npz").values()
    assert (images.shape, images.dtype) == ((4, 1, 8, 8), np.float32)
    save_samples(small_toy(3), tmp_path / "toy.npz", None, 4, **options)
    arrays = np.load(tmp_path / "toy.npz")
    assert (arrays["features"].shape, arrays["labels"].tolist()) == ((12, 2), [0] * 4 + [1] * 4 + [2] * 4)
    save_samples(small_toy(3), tmp_path / "toy.png", 1, 4, **options)
    assert (tmp_path / "toy.png").stat().st_size > 2000
    vectors = scatter(M2((5,), 3, 3, (5,), "gaussian"), 0.3)
    with pytest.raises(ValueError, match=r"no picture of vectors of shape \(5,\); expected a name that ends in .npz"):
        save_samples(vectors, tmp_path / "vectors.png", None, 4, **options)


def test_kinds_without_finite_samples_are_named_and_left_out(capsys):
    model = tzk_images()[0]
    sample = model.sample

    def failing(count, y=None, **options):
        if y == "zero":
            raise FloatingPointError("too hot")
        return sample(count, y, **options)

    model.sample = failing
    drawn, shown = samples_that_are_finite(model, 2, seed=0)
    assert (drawn.shape, shown) == ((2, 2, 1, 8, 8), ["digits", "one"])
    assert capsys.readouterr().err == "fastflow: no samples of zero: too hot\n"
    model.sample = lambda count, y=None, **_: failing(count, "zero")
    with pytest.raises(FloatingPointError, match="too hot"):
        samples_that_are_finite(model, 2, seed=0)


def test_samples_of_m1m2_are_its_decoded_styles():
    model = m1m2()
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(5))
    drawn = draw_samples(model, [1], 2, seed=5)
    torch.testing.assert_close(drawn[0], model.decode(z, 1))


def test_latents_take_no_more_rows_than_they_show():
    data, seen = vector_data(2, rows=6), []
    model = small_toy(3)
    embed = model.embed
    model.embed = lambda x: seen.append(len(x)) or embed(x)
    rows = POINTS + 7
    many = VectorData("many", 3, data.train_features, data.train_labels, torch.randn(rows, 2), torch.arange(rows) % 3)
    latents(model, many)
    assert sum(seen) == POINTS
