"""The package's pictures as layers: recoloured subjects, and what a head can wear, with the points where they meet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .words import ANIMALS, COLOURS, EYEWEAR, HEADWEAR, PEOPLE, TONES

SUBJECT_SIZE, WORN_SIZE = 40, 28
TARGETS = {  # The colours' RGB, after the package's own hearts.
    "red": (235, 50, 45),
    "orange": (250, 140, 25),
    "yellow": (250, 205, 45),
    "green": (90, 175, 60),
    "blue": (35, 125, 225),
    "purple": (150, 65, 190),
    "pink": (245, 125, 175),
    "black": (62, 62, 66),
}
_SKIN = {"light": "1F3FB", "medium": "1F3FD", "dark": "1F3FF"}


@dataclass(frozen=True)
class Anchor:
    """Where things are worn, in a 64×64 picture: the head's middle, its top, the hat's width, the eyes."""

    middle: float
    top: float
    width: float
    eyes: float
    apart: float


@dataclass(frozen=True)
class Subject:
    """A subject: its words, its picture in the package, where it wears things (None: nowhere), and its kind."""

    words: tuple[str, ...]
    picture: str
    kind: str
    anchor: Anchor | None = None
    tones: bool = False


_ANCHORS = {  # name: short name in the package, middle, top, width, eyes' height, eyes apart
    "tiger": ("tiger", 32, 6, 30, 21, 23),
    "rabbit": ("rabbit", 32, 25, 24, 38, 16),
    "cat": ("smiley_cat", 32, 14, 28, 33, 24),
    "monkey": ("monkey_face", 32, 9, 30, 30, 16),
    "dog": ("dog", 33, 12, 26, 33, 19),
    "pig": ("pig", 31, 10, 32, 34, 27),
    "frog": ("frog", 32, 15, 26, 21, 30),
    "bear": ("bear", 32, 8, 32, 30, 22),
    "panda": ("panda_face", 31.5, 10, 32, 33, 23),
    "koala": ("koala", 32, 12, 28, 33, 21),
    "lion": ("lion_face", 32, 11, 34, 25, 17),
    "fox": ("fox_face", 32, 17, 26, 36, 16),
    "alien": ("alien", 32, 4, 32, 32, 28),
    "ghost": ("ghost", 31, 4, 26, 17, 17),
    "robot": ("robot_face", 31, 18, 36, 33, 22),
    "skull": ("skull", 32, 4, 34, 32, 24),
    "boy": ("boy", 32, 6, 36, 39, 22),
    "girl": ("girl", 32, 6, 36, 39, 22),
    "man": ("man", 32, 5, 36, 37, 22),
    "woman": ("woman", 32, 5, 36, 38, 22),
    "smiling face": ("slightly_smiling_face", 32, 7, 34, 25, 21),
    "laughing face": ("laughing", 32, 7, 34, 25, 22),
    "sad face": ("white_frowning_face", 32, 7, 34, 25, 21),
    "crying face": ("sob", 32, 7, 34, 25, 24),
    "angry face": ("angry", 32, 7, 34, 35, 18),
    "surprised face": ("open_mouth", 32, 7, 34, 25, 21),
    "laughing cat": ("smile_cat", 32, 14, 28, 33, 24),
    "crying cat": ("crying_cat_face", 32, 14, 28, 32, 24),
    "angry cat": ("pouting_cat", 32, 14, 28, 32, 24),
}
_THINGS = {
    "heart": "heart",
    "circle": "red_circle",
    "square": "large_red_square",
    "star": "star",
    "apple": "apple",
    "balloon": "balloon",
    "car": "car",
    "butterfly": "butterfly",
    "shirt": "shirt",
    "book": "closed_book",
    "tulip": "tulip",
    "umbrella": "umbrella",
    "fish": "fish",
    "mushroom": "mushroom",
}
_WORN = {
    "crown": "crown",
    "hat": "tophat",
    "bow": "ribbon",
    "flower": "hibiscus",
    "cap": "billed_cap",
    "sunglasses": "dark_sunglasses",
    "glasses": "eyeglasses",
}


def subjects() -> list[Subject]:
    """Return every subject, in a fixed order."""
    found = []
    for name, (picture, *numbers) in _ANCHORS.items():
        words = tuple(name.split())
        person = name in PEOPLE
        kind = "person" if person else "animal" if words[-1] in ANIMALS else "face"
        found.append(Subject(words, picture, kind, Anchor(*numbers), person))
    found += [Subject((name,), picture, "thing") for name, picture in _THINGS.items()]
    return found


@dataclass(frozen=True)
class Layers:
    """All pictures, premultiplied RGBA in [0, 1].

    Attributes:
        bodies: float32 ``[subjects, 1 + colours, 4, 40, 40]``; the first is the package's own colour. A person's
            further pictures are the skin tones, repeated.
        worn: float32 ``[headwear + eyewear, 4, 28, 28]``.
    """

    subjects: tuple[Subject, ...]
    bodies: Tensor
    worn: Tensor


def load_layers(package: Path) -> Layers:
    """Read the pictures of an unpacked ``emoji-datasource-google``.

    Raises:
        FileNotFoundError: ``package`` has no ``emoji.json``.
    """
    listing = package / "emoji.json"
    if not listing.is_file():
        raise FileNotFoundError(f"no {listing}; unpack the package first: npm pack emoji-datasource-google@16.0.0")
    entries = {entry["short_name"]: entry for entry in json.loads(listing.read_text())}
    folder = package / "img" / "google" / "64"

    def picture(name: str, tone: str | None = None) -> Image.Image:
        entry = entries[name]
        entry = entry["skin_variations"][_SKIN[tone]] if tone else entry
        return Image.open(folder / entry["image"]).convert("RGBA")

    bodies = []
    everyone = subjects()
    for subject in everyone:
        plain = picture(subject.picture)
        if subject.tones:
            variants = [picture(subject.picture, TONES[index % len(TONES)]) for index in range(len(COLOURS))]
        else:
            variants = [recolour(plain, TARGETS[colour]) for colour in COLOURS]
        bodies.append(torch.stack([_layer(image, SUBJECT_SIZE) for image in (plain, *variants)]))
    worn = torch.stack([_layer(picture(_WORN[name]), WORN_SIZE) for name in (*HEADWEAR, *EYEWEAR)])
    return Layers(tuple(everyone), torch.stack(bodies), worn)


def recolour(image: Image.Image, target: tuple[int, int, int]) -> Image.Image:
    """Return the picture with its main colour replaced; darker and lighter shades of it follow, the rest stays."""
    rgba = np.asarray(image, dtype=np.float32) / 255
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    light = rgb @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
    tint = rgb / np.maximum(rgb.sum(-1, keepdims=True), 0.05)  # Chromaticity: the colour without its brightness.
    counted = (alpha > 0.9) & (light > 0.3)
    bins = (rgb * 7.99).astype(int) @ np.array([64, 8, 1])
    main = np.bincount(bins[counted]).argmax()
    chosen = counted & (bins == main)
    away = np.linalg.norm(tint - tint[chosen].mean(0), axis=-1)
    weight = np.clip((0.16 - away) / 0.08, 0, 1) * np.clip((light - 0.2) / 0.12, 0, 1)
    ratio = (light / light[chosen].mean())[..., None]
    goal = np.array(target, dtype=np.float32) / 255
    shaded = np.where(ratio < 1, goal * ratio, goal + (1 - goal) * np.clip(ratio - 1, 0, 1) * 0.6)
    out = rgb + weight[..., None] * (np.clip(shaded, 0, 1) - rgb)
    return Image.fromarray((np.concatenate([out, alpha[..., None]], -1) * 255).round().astype(np.uint8), "RGBA")


def _layer(image: Image.Image, size: int) -> Tensor:
    rgba = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    premultiplied = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])[None]
    return torch.nn.functional.interpolate(premultiplied, size=(size, size), mode="bilinear", antialias=True)[0]
