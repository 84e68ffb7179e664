"""Augmentation of a batch: exact against slicing an image at a time, keyed by row, never out of range."""

import numpy as np
import pytest
import torch

from fastflow.data import Augmentation, augment
from fastflow.data.augment import NUMBERS, rotate, window
from fastflow.training.randomness import AUGMENT, uniform

IMAGES = torch.randint(0, 256, (64, 3, 7, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(64, NUMBERS, generator=torch.Generator().manual_seed(1))
LARGEST = 1.0 - 2.0**-24  # a float32 product with it may round up


def by_hand(image: np.ndarray, numbers: list[float], augmentation: Augmentation) -> np.ndarray:
    _, down, right, mirror = numbers
    pad, (height, width) = augmentation.pad, image.shape[1:]
    tall, wide = augmentation.crop or height, augmentation.crop or width
    padded = np.pad(image, [(0, 0), (pad, pad), (pad, pad)])
    top, left = int(down * (padded.shape[1] - tall + 1)), int(right * (padded.shape[2] - wide + 1))
    cut = padded[:, top : top + tall, left : left + wide]
    return cut[..., ::-1] if augmentation.flip and mirror < 0.5 else cut


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(), Augmentation(pad=2), Augmentation(crop=4), Augmentation(flip=True),
     Augmentation(pad=4, crop=5, flip=True), Augmentation(pad=20)],
)
def test_shift_crop_and_flip_copy_pixels(augmentation):
    found = augment(IMAGES, NOISE, augmentation)
    assert found.dtype == torch.uint8
    for image, numbers, moved in zip(IMAGES.numpy(), NOISE.tolist(), found.numpy(), strict=True):
        assert np.array_equal(moved, by_hand(image, numbers, augmentation))


def test_every_place_is_reached_as_often():
    numbers = torch.rand(9000, NUMBERS, generator=torch.Generator().manual_seed(2))
    dot = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    dot[0, 0, 1, 1] = 1
    counts = augment(dot.expand(9000, -1, -1, -1), numbers, Augmentation(pad=1)).sum(dim=(0, 1))
    assert counts.sum() == 9000
    assert (counts - 1000).abs().max() < 150  # 5 standard deviations
    flipped = augment(torch.eye(2, dtype=torch.uint8).expand(9000, 1, 2, 2), numbers, Augmentation(flip=True))
    assert abs(int(flipped[:, 0, 0, 1].sum()) - 4500) < 240


def test_the_extreme_numbers_stay_inside():
    for pad in range(12):
        numbers = torch.full((1, NUMBERS), LARGEST)
        assert torch.equal(augment(IMAGES[:1], numbers, Augmentation(pad=pad)),
                           window(IMAGES[:1], torch.arange(7)[None] + pad, torch.arange(5)[None] + pad))


def test_a_row_moves_alike_in_every_batch():
    key = {"seed": 3, "stream": AUGMENT, "step": 7}
    rows = torch.tensor([5, 9, 60])
    augmentation = Augmentation(pad=2, flip=True, rotation=10.0)
    whole = augment(IMAGES, uniform((64, NUMBERS), rows=torch.arange(64), **key), augmentation)
    part = augment(IMAGES[rows], uniform((3, NUMBERS), rows=rows, **key), augmentation)
    assert torch.equal(whole[rows], part)
    other = augment(IMAGES, uniform((64, NUMBERS), rows=torch.arange(64), **key | {"step": 8}), augmentation)
    assert not torch.equal(whole, other)


@pytest.mark.parametrize("images", [IMAGES, IMAGES[..., :4, :4]])
def test_turns_by_right_angles_copy_pixels(images):
    assert torch.equal(rotate(images, torch.zeros(64)), images)
    assert torch.equal(rotate(images, torch.full((64,), 180.0)), images.flip(2, 3))
    square = images[..., :4, :4]
    assert torch.equal(rotate(square, torch.full((64,), 90.0)), square.rot90(1, (2, 3)))


def test_a_turn_keeps_shape_on_oblong_images():
    """A disc about the middle of an oblong image is a disc still."""
    y, x = torch.meshgrid(torch.arange(31.0) - 15, torch.arange(61.0) - 30, indexing="ij")
    disc = (200 * torch.sigmoid(10 - (x**2 + y**2).sqrt())).to(torch.uint8)[None, None]
    bar = (200 * torch.sigmoid(6 - x.abs()) * torch.sigmoid(2 - y.abs())).to(torch.uint8)[None, None]
    turned = rotate(torch.cat([disc, bar]), torch.tensor([33.0, 90.0])).int()
    assert (turned[0] - disc[0].int()).abs().max() <= 5
    upright = (200 * torch.sigmoid(6 - y.abs()) * torch.sigmoid(2 - x.abs())).int()
    assert (turned[1, 0] - upright).abs().max() <= 1


def test_angles_are_within_the_range():
    """A dot to the right of the middle moves on a circle, at most `rotation` up or down."""
    dot = torch.zeros(1, 1, 41, 41, dtype=torch.uint8)
    dot[0, 0, 20, 38] = 255
    numbers = torch.zeros(3, NUMBERS)
    numbers[:, 0] = torch.tensor([0.0, 0.5, LARGEST])
    turned = augment(dot.expand(3, -1, -1, -1), numbers, Augmentation(rotation=30.0)).flatten(1).argmax(1)
    angle = torch.atan2(20 - turned // 41, turned % 41 - 20).rad2deg()
    assert torch.allclose(angle.float(), torch.tensor([-30.0, 0.0, 30.0]), atol=2.0)


def test_augmentation_refuses_what_cannot_be():
    for bad in ({"pad": -1}, {"crop": 0}, {"rotation": -1.0}, {"rotation": 181.0}, {"rotation": float("nan")}):
        with pytest.raises(ValueError, match=r"augment: .* expected pad >= 0, crop >= 1"):
            Augmentation(**bad)
    for images in (IMAGES / 255, IMAGES[0]):
        with pytest.raises(TypeError, match=r"augment: images are torch.*expected torch.uint8 \[B, C, H, W\]"):
            augment(images, NOISE, Augmentation(rotation=10.0))
    with pytest.raises(ValueError, match="augment: crop is 8, expected at most 7, the padded image"):
        augment(IMAGES, NOISE, Augmentation(crop=8, pad=1))
    with pytest.raises(ValueError, match=r"augment: numbers have shape \(64, 3\), expected \(64, 4\)"):
        augment(IMAGES, NOISE[:, :3], Augmentation())
