"""What images become before a model sees them: principal components, and black and white."""

import pytest
import torch

from fastflow.data import PCA
from fastflow.ops import binarize


def _images(rows=200):
    return torch.randn(rows, 12) * torch.linspace(0.5, 3, 12) @ torch.linalg.qr(torch.randn(12, 12)).Q + 5


def test_components_are_white_and_invert():
    x = _images().view(200, 3, 4)
    pca = PCA.fit(x, 12)
    z = pca(x)
    assert z.shape == (200, 12)
    covariance = torch.cov(z.mT)
    assert torch.allclose(covariance, torch.eye(12), atol=1e-4)
    assert torch.allclose(pca.inverse(z), x, atol=1e-3)
    assert torch.allclose(pca.double()(x.double()).mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-5)


def test_few_components_are_those_of_most_variance():
    x = _images().double()
    pca = PCA.fit(x, 3, whiten=False).double()
    variances = torch.linalg.eigvalsh(torch.cov(x.mT)).flip(0)
    assert torch.allclose(pca(x).var(0), variances[:3], rtol=1e-5)
    lost = (pca.inverse(pca(x)) - x).square().sum() / (len(x) - 1)
    assert torch.allclose(lost, variances[3:].sum(), rtol=1e-5)


def test_a_large_mean_does_not_matter():
    x = torch.randn(300, 5, dtype=torch.float64) @ torch.diag(torch.tensor([3.0, 2, 1, 0.5, 0.1]).double())
    far, near = PCA.fit(x + 1e7, 5).double(), PCA.fit(x, 5).double()
    assert torch.allclose(far.scale, near.scale, rtol=1e-6)
    assert torch.allclose(far.directions.abs(), near.directions.abs(), atol=1e-6)


def test_components_are_saved():
    x = _images()
    pca, again = PCA.fit(x, 4), PCA((12,), 4)
    again.load_state_dict(pca.state_dict())
    assert torch.equal(pca(x), again(x))
    assert torch.equal(PCA.fit(x, 4)(x), pca(x))


@pytest.mark.parametrize(("rows", "components", "message"), [
    (10, 10, "PCA: components is 10, expected 1 to 9 for 10 rows of 12 features"),
    (200, 13, "PCA: components is 13, expected 1 to 12"),
    (200, 0, "PCA: components is 0, expected 1 to 12"),
])
def test_too_many_components(rows, components, message):
    with pytest.raises(ValueError, match=message):
        PCA.fit(_images(rows), components)


def test_flat_data_and_other_shapes():
    x = torch.randn(50, 2) @ torch.randn(2, 6)
    with pytest.raises(ValueError, match="PCA: x varies in 2 directions, expected at least components = 3"):
        PCA.fit(x, 3)
    with pytest.raises(ValueError, match=r"PCA: x has shape \(50, 1\), expected \(B, 6\)"):
        PCA.fit(x, 2)(x[:, :1])


def test_binarize_by_probability():
    x = torch.arange(17, dtype=torch.uint8)
    noise = torch.linspace(0, 1, 1601)[:-1]
    share = binarize(x.expand(1600, 17), noise[:, None].expand(1600, 17), levels=17).mean(0)
    assert torch.allclose(share, x / 16, atol=1e-3)
    assert binarize(x, levels=17).tolist() == [0.0] * 9 + [1.0] * 8
    assert binarize(x, levels=17, dtype=torch.float64).dtype == torch.float64
    extremes = binarize(torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([0.0, 1 - 2**-24]), levels=256)
    assert extremes.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("x", "noise", "error", "message"), [
    (torch.rand(3), None, TypeError, r"binarize: x has dtype torch\.float32, expected an integer dtype"),
    ([1], None, TypeError, "binarize: x is list, expected a Tensor"),
    (torch.tensor([17]), None, ValueError, "binarize: x has values from 17 to 17, expected 0 to 16"),
    (torch.tensor([1]), torch.rand(2), ValueError, r"binarize: noise has shape \(2,\), expected \(1,\)"),
])
def test_binarize_refuses(x, noise, error, message):
    with pytest.raises(error, match=message):
        binarize(x, noise, levels=17)
