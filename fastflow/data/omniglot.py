"""Omniglot: 1623 handwritten characters, each drawn by the same 20 people, as PNG images in zip archives."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastflow.data.images import ImageData
from fastflow.data.official import Official

_URL = "https://github.com/brendenlake/omniglot/tree/master/python"
TEST_DRAWERS = 4  # of 20: every character has 16 training and 4 test images
OMNIGLOT = Official(
    "omniglot", _URL,
    {"images_background.zip": "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
     "images_evaluation.zip": "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee"},
    classes=1623, shape=(1, 28, 28), train=25_968, test=6_492,
)
OMNIGLOT_SMALL = Official(
    "omniglot-small", _URL,
    {"images_background_small1.zip": "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
     "images_background_small2.zip": "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f"},
    classes=242, shape=(1, 28, 28), train=3_872, test=968, place="omniglot",
)


def omniglot(folder: str | os.PathLike | None = None, side: int = 28) -> ImageData:
    """The background and evaluation sets: images [1, side, side], 256 levels, ink bright; the class is the character.

    The 105x105 drawings are shrunk by Pillow's `Resampling.BOX`, the mean of the pixels whose centres fall into the new
    one. Drawers 1-16 are the training set, 17-20 the test set: the published sets share no character, so neither could
    test the other's classes. `folder` None means `$FASTFLOW_DATA/omniglot`. The sha256 of the archives is checked.
    Raises FileNotFoundError or ValueError naming the file and the remedy.
    Source: Lake, Salakhutdinov, Tenenbaum 2015, https://github.com/brendenlake/omniglot.
    """
    return _load(OMNIGLOT, folder, side)


def omniglot_small(folder: str | os.PathLike | None = None, side: int = 28) -> ImageData:
    """`omniglot` of the two "background small" archives: 242 characters of 8 alphabets, those that are in both once."""
    return _load(OMNIGLOT_SMALL, folder, side)


def _load(official: Official, folder: str | os.PathLike | None, side: int) -> ImageData:
    if side < 1:
        raise ValueError(f"{official.name}: side is {side}, expected at least 1 pixel")
    folder, drawings = official.folder(folder), {}
    for path in [official.find(folder, name) for name in official.files]:
        drawings |= read_drawings(path, side)
        official.verify(path)
    characters = sorted({character for character, _ in drawings})
    number = {character: place for place, character in enumerate(characters)}
    arrays = {}
    for part, drawers in (("train", range(1, 21 - TEST_DRAWERS)), ("test", range(21 - TEST_DRAWERS, 21))):
        keys = sorted(key for key in drawings if key[1] in drawers)
        official.require_rows(folder, len(keys), part)
        arrays[f"{part}_images"] = torch.from_numpy(np.stack([drawings[key] for key in keys])).unsqueeze(1)
        arrays[f"{part}_labels"] = torch.tensor([number[character] for character, _ in keys])
    return ImageData(official.name, 256, len(characters), **arrays)


def read_drawings(path: str | os.PathLike, side: int) -> dict[tuple[str, int], np.ndarray]:
    """uint8 [side, side] by ("alphabet/character", drawer 1..20) of one archive: ink 255 on paper 0, shrunk.

    Raises ValueError naming the archive, or the image in it.
    """
    drawings = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".png"):
                    alphabet, character, file = name.split("/")[-3:]
                    drawer = int(Path(file).stem.rpartition("_")[2])
                    drawings[f"{alphabet}/{character}", drawer] = _shrunk(archive.read(name), side)
    except Exception as error:  # a damaged file fails anywhere in zipfile, zlib and Pillow
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a complete archive of Omniglot ({reason}); get it from {_URL}") from error
    if not drawings:
        raise ValueError(f"{path}: no image in it, expected <set>/<alphabet>/<character>/<number>_<drawer>.png")
    return drawings


def _shrunk(png: bytes, side: int) -> np.ndarray:
    paper_is_white = Image.open(io.BytesIO(png)).convert("L").resize((side, side), Image.Resampling.BOX)
    return 255 - np.asarray(paper_is_white)
