"""The judge of generated digits: the demo's classifier, and its features of real digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics import Quality, Reference, quality
from .classifier import load_classifier
from .data import NUM_COLOURS, NUM_DIGITS, load_digits, paint

__all__ = ["Judge", "Look"]


@dataclass(frozen=True)
class Look:
    """Features and labels that the classifier finds in images.

    Attributes:
        features: ``[B, D]``.
        digit, colour: the classes found, int64 ``[B]``.
    """

    features: Tensor
    digit: Tensor
    colour: Tensor


class Judge:
    """The classifier and the features of real digits that neither it nor the denoiser was trained on.

    Args:
        count: real digits, in random colours, as many of each class.
        colours: indices into the palette that real digits are painted in; all by default.
    """

    def __init__(self, count: int = 500, colours: Sequence[int] = range(NUM_COLOURS)) -> None:
        self.classifier, _ = load_classifier()
        real = load_digits(held_out=True)
        chosen = torch.arange(len(real)).view(NUM_DIGITS, -1)[:, : max(1, count // NUM_DIGITS)].flatten()
        drawn = torch.randint(len(colours), (len(chosen),), generator=torch.Generator().manual_seed(0))
        painted = paint(real.grey[chosen], torch.tensor(colours)[drawn])
        self.reference = Reference(self._features(painted), real.digit[chosen])

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        return self.classifier.pooled(images.clamp(-1, 1).cpu())

    def look(self, images: Tensor) -> Look:
        """Return what the classifier sees in images ``[B, 3, 28, 28]``."""
        return Look(self._features(images), *self.classifier.predict(images.cpu()))

    def quality(self, look: Look, digit: Tensor) -> Quality:
        """Return the quality of images made for digits ``[B]``, beside the real ones."""
        return quality(self.reference, look.features, asked=digit.cpu(), seen=look.digit)
