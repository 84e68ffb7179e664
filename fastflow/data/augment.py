"""Random rotation, crop and mirroring of a batch of images, on its device."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS = 4  # uniform numbers that augment one image


@dataclass(frozen=True)
class Augmentation:
    """How images may move. The defaults leave them as they are.

    `pad`: pixels of level 0 that are put around an image, of which a window of `crop` x `crop` pixels (None: as large
    as the image was) is then taken anywhere: `pad` alone shifts, `crop` alone crops. `flip`: mirrored left to right,
    half of the images. `rotation`: the largest angle, degrees either way, about the middle.
    """

    pad: int = 0
    crop: int | None = None
    flip: bool = False
    rotation: float = 0.0

    def __post_init__(self):
        if self.pad < 0 or not 0.0 <= self.rotation <= 180.0 or (self.crop is not None and self.crop < 1):
            raise ValueError(f"augment: {self}, expected pad >= 0, crop >= 1 or None, rotation in [0, 180]")


def augment(images: Tensor, numbers: Tensor, augmentation: Augmentation) -> Tensor:
    """Grey levels uint8 [B, C, H', W'] of `images` uint8 [B, C, H, W], moved by `numbers` [B, 4] in [0, 1).

    Draw `numbers` with `fastflow.training.randomness.uniform` and the stream AUGMENT: then they depend on (seed, step,
    row) alone. Shifts, crops and mirroring copy pixels exactly; a rotation, which comes first, is bilinear and rounds.
    Raises TypeError for other images, ValueError for a crop that is larger than the padded image, or numbers of
    another shape.
    """
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise TypeError(f"augment: images are {images.dtype} {tuple(images.shape)}, expected torch.uint8 [B, C, H, W]")
    rows, _, height, width = images.shape
    if numbers.shape != (rows, NUMBERS):
        raise ValueError(f"augment: numbers have shape {tuple(numbers.shape)}, expected {(rows, NUMBERS)}")
    turn, down, right, mirror = numbers.double().unbind(1)  # in float32, u * n may round up to n
    if augmentation.rotation:
        images = rotate(images, (2.0 * turn - 1.0) * augmentation.rotation)
    tall, wide = augmentation.crop or height, augmentation.crop or width
    pad = augmentation.pad
    if tall > height + 2 * pad or wide > width + 2 * pad:
        raise ValueError(f"augment: crop is {augmentation.crop}, expected at most {min(height, width) + 2 * pad}, the "
                         "padded image")
    top = (down * (height + 2 * pad - tall + 1)).floor().long() - pad
    left = (right * (width + 2 * pad - wide + 1)).floor().long() - pad
    across = torch.arange(wide, device=images.device).expand(rows, -1)
    if augmentation.flip:
        across = torch.where((mirror < 0.5)[:, None], wide - 1 - across, across)
    return window(images, top[:, None] + torch.arange(tall, device=images.device), left[:, None] + across)


def window(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Pixels [B, C, h, w] of `images` [B, C, H, W] at rows `y` [B, h] and columns `x` [B, w]; outside is 0."""
    height, width = images.shape[2:]
    inside = ((y >= 0) & (y < height))[:, None, :, None] & ((x >= 0) & (x < width))[:, None, None, :]
    image, channel = (torch.arange(size, device=images.device) for size in images.shape[:2])
    found = images[image[:, None, None, None], channel[:, None, None], y.clamp(0, height - 1)[:, None, :, None],
                   x.clamp(0, width - 1)[:, None, None, :]]
    return torch.where(inside, found, 0)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Grey levels uint8 [B, C, H, W] turned counter-clockwise by `degrees` [B], bilinear and rounded; outside is 0."""
    height, width = images.shape[2:]
    angle, none = degrees * (math.pi / 180.0), torch.zeros_like(degrees)
    sine, cosine = angle.sin(), angle.cos()
    # From a pixel of the result to where it was, in units of half a side: those of an oblong image differ.
    to_x = torch.stack([cosine, -sine * (height / width), none], dim=1)
    to_y = torch.stack([sine * (width / height), cosine, none], dim=1)
    grid = F.affine_grid(torch.stack([to_x, to_y], dim=1).float(), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round().to(torch.uint8)
