"""A judge of samples: a small classifier of the pictures' subject, colour, things worn and background."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Layers, subjects
from .scenes import BACKGROUNDS, Scene, draw, random_scene, words_for
from .words import COLOURS, EYEWEAR, HEADWEAR, TONES

_HEADS: dict[str, tuple[str, ...]] = {
    "subject": tuple(" ".join(subject.words) for subject in subjects()),
    "colour": ("", *COLOURS, *TONES),
    "headwear": ("", *HEADWEAR),
    "eyewear": ("", *EYEWEAR),
    "background": ("", *BACKGROUNDS),
}


def answers(words: Sequence[str]) -> dict[str, str]:
    """Return what the words ask for, by the judge's questions; a question they leave open is not in it."""
    front, back = (words[: words.index("on")], words[words.index("on") + 1 :]) if "on" in words else (words, [])
    asked = {"background": back[0]} if back else {}
    for name in ("colour", "headwear", "eyewear"):
        asked.update((name, word) for word in front if word in _HEADS[name])
    subject = " ".join(word for word in front if word not in asked.values())
    if subject in _HEADS["subject"]:
        asked["subject"] = subject
    return asked


class Judge(nn.Module):
    """A convolutional network with an answer to each question."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 12  # Of 2×2 pixels.
        for out in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU()]
            layers += [nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU(), nn.AvgPool2d(2)]
            channels = out
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleDict({name: nn.Linear(channels * 4, len(words)) for name, words in _HEADS.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the logits of each question for pictures ``[B, 3, 40, 40]``."""
        features = self.body(F.pixel_unshuffle(pictures.clamp(-1, 1), 2))
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def right(self, pictures: Tensor, asked: Sequence[dict[str, str]]) -> list[bool]:
        """Return for each picture whether every question that its prompt asks has the answer asked for."""
        said = {name: logits.argmax(1).tolist() for name, logits in self(pictures).items()}
        return [
            all(_HEADS[name][said[name][row]] == word for name, word in questions.items())
            for row, questions in enumerate(asked)
        ]


def train_judge(layers: Layers, *, steps: int = 600, batch: int = 64, seed: int = 1) -> Judge:
    """Train a judge on pictures of its own, with held-out pairs among them: it has to know what they look like."""
    torch.manual_seed(seed)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rng = random.Random(seed)
    for _ in range(steps):
        pictures, labels = judged_batch(layers, rng, batch)
        losses = [F.cross_entropy(logits, labels[name]) for name, logits in judge(pictures).items()]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return judge.eval().requires_grad_(False)


def judged_batch(layers: Layers, rng: random.Random, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return pictures, a little blurred or noisy as samples are, and the answers to every question."""
    scenes = [random_scene(layers, rng, held_out=True) for _ in range(count)]
    found = [_answers_of(scene, layers) for scene in scenes]
    labels = {name: torch.tensor([words.index(answer[name]) for answer in found]) for name, words in _HEADS.items()}
    pictures = draw(scenes, layers)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    level = torch.rand(count, 1, 1, 1, generator=generator) * 0.15
    return pictures + level * torch.randn(pictures.shape, generator=generator), labels


def _answers_of(scene: Scene, layers: Layers) -> dict[str, str]:
    return {name: "" for name in _HEADS} | answers(words_for(scene, layers))
