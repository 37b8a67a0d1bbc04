"""What happens to files: bits that flip, tails and sectors that are lost, and files that are another."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

__all__ = ["DAMAGES", "damaged"]

SECTOR = 512
HEAD = 2048
"""Half of all damage is done here: what says how the rest is to be read."""


def _place(size: int, rng: Random) -> int:
    return rng.randrange(min(size, HEAD) if rng.random() < 0.5 else size)


def _bit(content: bytearray, rng: Random) -> None:
    content[_place(len(content), rng)] ^= 1 << rng.randrange(8)


def _byte(content: bytearray, rng: Random) -> None:
    content[_place(len(content), rng)] = rng.choice((0, 0xFF, ord("9"), ord("{"), rng.randrange(256)))


def _truncate(content: bytearray, rng: Random) -> None:
    del content[_place(len(content), rng) :]


def _grow(content: bytearray, rng: Random) -> None:
    content += rng.randbytes(rng.choice((1, 8, SECTOR)))


def _zeros(content: bytearray, rng: Random) -> None:
    at = _place(len(content), rng) // SECTOR * SECTOR
    content[at : at + SECTOR] = bytes(len(content[at : at + SECTOR]))


def _repeat(content: bytearray, rng: Random) -> None:
    """A sector in another's place."""
    here, there = (_place(len(content), rng) // SECTOR * SECTOR for _ in range(2))
    sector = content[here : here + SECTOR]
    content[there : there + len(sector)] = sector


def _drop(content: bytearray, rng: Random) -> None:
    at = _place(len(content), rng)
    del content[at : at + rng.choice((1, 4, SECTOR))]


class _Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.makedirs, (self.folder,)


def _pickle(trap: str) -> bytes:
    return pickle.dumps({"state": _Trap(trap)})


DAMAGES: Mapping[str, Callable[[bytearray, Random], None]] = {
    "bit": _bit,
    "byte": _byte,
    "truncated": _truncate,
    "grown": _grow,
    "zeros": _zeros,
    "repeated": _repeat,
    "dropped": _drop,
    "emptied": lambda content, rng: content.clear(),
    "noise": lambda content, rng: content.__setitem__(slice(None), rng.randbytes(len(content))),
}


def damaged(content: bytes, damage: str, seed: int, trap: str) -> bytes:
    """A damaged copy.

    Args:
        damage: of :data:`DAMAGES`, or ``"pickle"``, one that makes the folder ``trap`` when it is read.
    """
    if damage == "pickle":
        return _pickle(trap)
    made = bytearray(content)
    DAMAGES[damage](made, Random(seed))
    return bytes(made)
