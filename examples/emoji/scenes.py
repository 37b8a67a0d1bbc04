"""Training pictures: a subject, in a colour, wearing things, on a background; and the words that say so."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import TARGETS, Anchor, Layers
from .words import COLOURS, EYEWEAR, HEADWEAR, TONES, held_out_pairs

IMAGE_SIZE = 40
BACKGROUNDS = tuple(colour for colour in COLOURS if colour != "black")


@dataclass(frozen=True)
class Scene:
    """One picture to be drawn: what it shows, and where (see ``draw``).

    Attributes:
        subject: its index in ``Layers.subjects``.
        variant: 0 for the package's own colour, else 1 + the index in ``COLOURS``.
        headwear, eyewear: a name, or "".
        background: a colour's name, or "" for white.
        size: of the subject's frame, as a fraction of the picture.
        right, down: where the frame's middle is, in pictures from the middle.
        mirrored: left and right swapped.
    """

    subject: int
    variant: int
    headwear: str = ""
    eyewear: str = ""
    background: str = ""
    size: float = 0.9
    right: float = 0.0
    down: float = 0.0
    mirrored: bool = False


def words_for(scene: Scene, layers: Layers) -> list[str]:
    """Return the scene's full caption: colour or tone, subject, things worn, background."""
    subject = layers.subjects[scene.subject]
    words = []
    if scene.variant:
        words.append(TONES[(scene.variant - 1) % len(TONES)] if subject.tones else COLOURS[scene.variant - 1])
    words += [*subject.words, *filter(None, (scene.headwear, scene.eyewear))]
    return [*words, "on", scene.background] if scene.background else words


def random_scene(layers: Layers, rng: random.Random, *, held_out: bool = False) -> Scene:
    """Draw a scene, whose words hold no held-out pair unless ``held_out``."""
    while True:
        subject = rng.choices(range(len(layers.subjects)), _weights(layers))[0]
        chosen = layers.subjects[subject]
        variant = 1 + rng.randrange(len(COLOURS)) if rng.random() < (0.55 if chosen.anchor else 0.85) else 0
        headwear = eyewear = ""
        if chosen.anchor:
            headwear = rng.choice(HEADWEAR) if rng.random() < 0.45 else ""
            eyewear = rng.choice(EYEWEAR) if rng.random() < 0.4 else ""
        scene = Scene(
            subject,
            variant,
            headwear,
            eyewear,
            rng.choice(BACKGROUNDS) if rng.random() < 0.4 else "",
            rng.uniform(0.64, 0.71) if headwear else rng.uniform(0.80, 0.95),
            rng.uniform(-0.04, 0.04),
            rng.uniform(0.11, 0.13) if headwear else rng.uniform(-0.03, 0.03),
            rng.random() < 0.5,
        )
        if held_out or not held_out_pairs(words_for(scene, layers)):
            return scene


def drop_words(words: Sequence[str], kind: str, rng: random.Random, *, nameless: float = 0.0) -> list[str]:
    """Return the caption as training gives it: now and then empty, less than everything, or with a wider noun.

    What a caption leaves open the model learns to fill in; a negative prompt then has something to take away.

    Args:
        kind: the wider noun.
        nameless: probability of leaving out the subject where something else is said of it ("sunglasses on pink").
    """
    if rng.random() < 0.12:
        return []
    front, back = (words[: words.index("on")], words[words.index("on") :]) if "on" in words else (words, [])
    kept = [word for word in front if rng.random() > (0.12 if word in _OPTIONAL else 0.0)]
    if rng.random() < 0.06:
        nouns = [word for word in kept if word not in _OPTIONAL]
        kept = [kind if word in nouns else word for word in kept]
        kept = list(dict.fromkeys(kept))
    back = [] if rng.random() < 0.12 else back
    if nameless and rng.random() < nameless:
        kept = [word for word in kept if word in _OPTIONAL] or kept
    return [*kept, *back]


def draw(scenes: Sequence[Scene], layers: Layers) -> Tensor:
    """Return the pictures, float32 ``[B, 3, 40, 40]`` in [-1, 1]."""
    subject = torch.tensor([scene.subject for scene in scenes])
    variant = torch.tensor([scene.variant for scene in scenes])
    sizes = torch.tensor([scene.size for scene in scenes])
    middle = torch.tensor([(scene.right, scene.down) for scene in scenes]) * 2
    sign = torch.tensor([(-1.0 if scene.mirrored else 1.0, 1.0) for scene in scenes])
    axis = (torch.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE * 2 - 1
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # [40, 40, 2], x then y.
    # Where each pixel lies in the subject's frame, [-1, 1].
    frame = (pixels - middle[:, None, None]) / sizes[:, None, None, None] * sign[:, None, None]
    colours = torch.tensor([_background(scene.background) for scene in scenes])
    picture = colours[:, :, None, None].expand(-1, -1, IMAGE_SIZE, IMAGE_SIZE)
    picture = _over(picture, F.grid_sample(layers.bodies[subject, variant], frame, align_corners=False))
    names = (*HEADWEAR, *EYEWEAR)
    for part in ("eyewear", "headwear"):
        rows = [index for index, scene in enumerate(scenes) if getattr(scene, part)]
        if not rows:
            continue
        places, which = [], []
        for row in rows:
            name, anchor = getattr(scenes[row], part), layers.subjects[scenes[row].subject].anchor
            if anchor is None:
                raise ValueError(f"a {layers.subjects[scenes[row].subject].words[-1]} wears nothing, got {name!r}")
            places.append(_place(name, anchor))
            which.append(names.index(name))
        place = torch.tensor(places)[:, :, None, None]  # x, y in the frame, and size, of the thing's own picture.
        inside = (frame[rows] - place[:, :2].permute(0, 2, 3, 1)) / place[:, 2:].permute(0, 2, 3, 1)
        picture = picture.clone()
        picture[rows] = _over(picture[rows], F.grid_sample(layers.worn[which], inside, align_corners=False))
    return picture * 2 - 1


def _place(name: str, at: Anchor) -> tuple[float, float, float]:
    """Return the middle and the size of a worn picture, in the subject's frame [-1, 1]."""
    if name in EYEWEAR:
        size = max(0.64, at.apart / 28)
        x, y = at.middle, at.eyes
    elif name == "crown":
        size = at.width / 52
        x, y = at.middle, at.top + 4 - 28 * size
    elif name == "hat":
        size = at.width * 1.1 / 60
        x, y = at.middle, at.top + 4 - 23 * size
    elif name == "bow":
        size = 0.52
        x, y = at.middle, at.top + 3
    elif name == "flower":
        size = 0.46
        x, y = at.middle + at.width * 0.42, at.top + 5
    else:  # A cap, whose crown is right of its middle.
        size = at.width * 1.15 / 46
        x, y = at.middle - 5 * size, at.top + 4 - 14 * size
    return x / 32 - 1, y / 32 - 1, size


def _background(name: str) -> list[float]:
    """Return a pale shade of the colour, or white, in [0, 1]."""
    return [0.45 + 0.55 * value / 255 for value in TARGETS[name]] if name else [1.0, 1.0, 1.0]


def _over(picture: Tensor, layer: Tensor) -> Tensor:
    return layer[:, :3] + picture * (1 - layer[:, 3:])


def _weights(layers: Layers) -> list[float]:
    # Each mood makes a subject, so faces and cats would come too often.
    return [0.6 if len(subject.words) > 1 else 1.0 for subject in layers.subjects]


_OPTIONAL = frozenset((*COLOURS, *TONES, *HEADWEAR, *EYEWEAR))
