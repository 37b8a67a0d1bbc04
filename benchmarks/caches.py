"""Hot and cold: a call on predictions that the last one used, or on copies that have left the last-level cache."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .peers import Call, Predictions

__all__ = ["copies", "copy_call", "in_turn", "last_level_cache", "rotations"]

CPU = Path("/sys/devices/system/cpu/cpu0")
UNKNOWN = 64 << 20
"""Bytes of a last-level cache that the system does not tell; larger than most."""


def last_level_cache(device: str) -> int:
    """Bytes of the GPU's L2, or of the CPU's L3."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    # What the processor itself tells (sysconf) may be of a whole socket, the part of a virtual machine far less.
    sizes = [file.read_text().strip() for file in CPU.glob("cache/index*/size")]
    return max((int(size[:-1]) << 10 for size in sizes if size.endswith("K")), default=UNKNOWN)


def rotations(size: int, cache: int) -> int:
    """Copies of so many bytes that take turns when between two uses of one the others fill the cache."""
    return 1 + -(-cache // size)


def copies(predictions: Predictions, number: int) -> list[dict[str, Tensor]]:
    """The predictions and their copies, in as many memories."""
    return [dict(predictions), *({n: p.clone() for n, p in predictions.items()} for _ in range(number - 1))]


def in_turn(calls: Mapping[str, Sequence[Call]]) -> dict[str, Call]:
    """One call of each contestant; whoever is called takes the next copy, so that none finds what another just read.

    Args:
        calls: by contestant its call on each copy; as many of each.
    """
    turn = itertools.count()

    def rotating(own: Sequence[Call]) -> Call:
        size = len(own)
        return own[0] if size == 1 else lambda: own[next(turn) % size]()

    return {name: rotating(own) for name, own in calls.items()}


def copy_call(moved: int, device: str) -> Call:
    """A plain copy that moves so many bytes, half of them read and half written: what a machine can do at best."""
    source = torch.zeros(moved // 2, dtype=torch.uint8, device=device)
    goal = torch.ones_like(source)
    return lambda: goal.copy_(source)
