"""The words of a prompt: what they may be, how they become numbers, and which pairs training never shows together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
HEADWEAR = ("crown", "hat", "bow", "flower", "cap")
EYEWEAR = ("sunglasses", "glasses")
TONES = ("light", "medium", "dark")
ANIMALS = ("cat", "dog", "fox", "panda", "lion", "frog", "pig", "rabbit", "tiger", "bear", "koala", "monkey")
PEOPLE = ("man", "woman", "boy", "girl")
FIGURES = ("alien", "ghost", "robot", "skull")
MOODS = ("smiling", "laughing", "sad", "crying", "angry", "surprised")
THINGS = (
    *("heart", "circle", "square", "star", "apple", "balloon", "car"),
    *("butterfly", "shirt", "book", "tulip", "umbrella", "fish", "mushroom"),
)
KINDS = ("animal", "person", "face", "thing")

VOCABULARY = (
    *("<pad>", "<start>", "on"),
    *(*COLOURS, *HEADWEAR, *EYEWEAR, *TONES, *ANIMALS, *PEOPLE, *FIGURES, *MOODS, *THINGS, *KINDS),
)
FILLERS = frozenset(["a", "an", "the", "with", "wearing", "and", "in", "of", "background", "skin"])
MAX_WORDS = 10

_APART = {
    "crown": ("fox", "alien", "monkey"),
    "hat": ("cat", "woman", "ghost"),
    "bow": ("panda", "tiger"),
    "flower": ("robot", "bear"),
    "cap": ("koala",),
    "sunglasses": ("frog", "lion"),
    "glasses": ("pig",),
    "red": ("star",),
    "orange": ("panda", "book"),
    "yellow": ("rabbit",),
    "green": ("cat", "car"),
    "blue": ("dog", "apple"),
    "purple": ("bear", "mushroom"),
    "pink": ("frog", "koala", "butterfly"),
    "black": ("fish", "tulip"),
}
HELD_OUT = frozenset(frozenset((word, subject)) for word, subjects in _APART.items() for subject in subjects)
"""Pairs of words that no training picture shows together."""


def words_of(prompt: str) -> list[str]:
    """Return the prompt's words, without fillers such as "a", "with" and "background".

    Raises:
        ValueError: a word that the model does not know, or too many of them.
    """
    words = [word for word in prompt.lower().replace(",", " ").split() if word not in FILLERS]
    unknown = [word for word in words if word not in _INDEX or word.startswith("<")]
    if unknown:
        known = " ".join(word for word in VOCABULARY if not word.startswith("<"))
        raise ValueError(f"the model does not know {', '.join(map(repr, unknown))}; it knows: {known}")
    if len(words) > MAX_WORDS:
        raise ValueError(f"a prompt has at most {MAX_WORDS} words besides fillers, got {len(words)}: {prompt!r}")
    return words


def encode(prompts: Sequence[Sequence[str]]) -> Tensor:
    """Return word numbers, int64 ``[B, 1 + MAX_WORDS]``: a start, the words, padding. No words is the empty prompt."""
    rows = torch.zeros(len(prompts), 1 + MAX_WORDS, dtype=torch.int64)
    rows[:, 0] = 1
    for row, words in zip(rows, prompts, strict=True):
        row[1 : 1 + len(words)] = torch.tensor([_INDEX[word] for word in words], dtype=torch.int64)
    return rows


def held_out_pairs(words: Sequence[str]) -> list[frozenset[str]]:
    """Return the pairs of these words that no training picture shows; a colour after "on" is the background's."""
    front = set(words[: words.index("on")] if "on" in words else words)
    return [pair for pair in HELD_OUT if pair <= front]


_INDEX = {word: index for index, word in enumerate(VOCABULARY)}
