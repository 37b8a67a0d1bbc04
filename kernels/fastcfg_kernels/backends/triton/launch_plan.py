"""How a program is launched on a GPU: plain Python arithmetic on sizes, no autotuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "LARGEST_TILE",
    "MOST_REGISTERS",
    "OF_A_WARP",
    "TILE_BYTES",
    "VECTOR",
    "LaunchPlan",
    "Strategy",
    "plan_launch",
]

Strategy = Literal["row", "cooperative", "two_launch"]

MOST_REGISTERS = 128
"""Registers of a thread of a cooperative launch at most, so that sixteen warps share a multiprocessor for certain."""
VECTOR = 8
"""Elements that lie side by side and belong to one lane of a tile: 128 bits of bfloat16."""
LARGEST_TILE = 16_384
"""Elements of a tile at most: 32 a thread of sixteen warps."""
SMALL_TILE = 4_096
"""Elements of a tile where a group has few."""
OF_A_WARP = 1024
"""Elements of a program with several groups: one warp's, which waits for no other however its groups lie in memory."""
TILE_BYTES = 131_072
"""What a program holds in registers of its inputs at most."""
MANY = 128
"""Tiles of a group from which on they get larger."""


@dataclass(frozen=True)
class LaunchPlan:
    """A launch.

    Attributes:
        strategy: ``row`` (one launch, one read, a group in one program), ``cooperative`` (the same with several
            programs a group, which wait for each other) or ``two_launch`` (moments of tiles, then apply).
        tile: elements of a tile, a power of two: what a program holds of each of its groups. It follows from the
            elements of a group and the bytes of each, not from the strategy or the batch, and so do the sums.
        tiles: tiles of a group.
        repeats: vectors of a tile that each of its lanes has; see :func:`.tiles.load_tile`. Sums follow from it too.
        groups: groups of a program.
        num_warps: warps of a program, of 32 threads. Sums do not depend on it.
    """

    strategy: Strategy
    tile: int
    tiles: int
    repeats: int
    groups: int
    num_warps: int

    def programs(self, groups: int) -> int:
        """Programs of a launch for so many groups."""
        return -(-groups // self.groups) * self.tiles


def _repeats(tile: int, width: int) -> int:
    """Vectors that a lane has: four up to 8 bytes an element, fewer beyond or where lanes of a warp would idle."""
    return min(max(tile // (VECTOR * 32), 1), 4 if width <= 8 else 2 if width <= 16 else 1)


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _tile(count: int, width: int) -> int:
    """Elements of a tile, for groups of ``count`` elements with ``width`` bytes of input each."""
    most = LARGEST_TILE
    while most * width > TILE_BYTES and most > 1024:
        most //= 2
    if count <= most:
        return _power_of_two(count)
    tile = SMALL_TILE
    while tile * MANY < count:
        tile *= 2
    return min(tile, most)


def plan_launch(
    count: int,
    tensors: int,
    itemsize: int,
    *,
    groups: int = 1,
    reduces: bool = True,
    strategy: Strategy | None = None,
    cooperative: int = 0,
) -> LaunchPlan:
    """Choose a launch by the sizes alone. Every choice gives the same bits.

    Args:
        count: elements of a group.
        tensors: tensors read; itemsize: bytes of an element.
        groups: groups in all.
        reduces: whether the rule has sums; one without is a single elementwise launch.
        strategy: force a strategy.
        cooperative: programs of sixteen warps that the device holds at once, for a cooperative launch; 0 where there
            is to be none.

    Raises:
        ValueError: if a strategy is forced that the sizes do not allow.
    """
    width = tensors * itemsize
    tile = _tile(count, width) if reduces or count <= SMALL_TILE else SMALL_TILE
    tiles = -(-count // tile)
    each = _repeats(tile, width)
    if strategy == "row" or (strategy is None and tiles == 1 and (reduces or tile < SMALL_TILE)):
        if tiles > 1:
            raise ValueError(
                f"strategy: 'row' holds at most {TILE_BYTES} bytes and {LARGEST_TILE} elements of a group, "
                f"got {tensors} x {count} elements of {itemsize} bytes"
            )
        together = max(min(OF_A_WARP // tile, _power_of_two(groups)), 1)
        while tile * together * width > TILE_BYTES and together > 1:
            together //= 2
        return LaunchPlan("row", tile, tiles, each, together, 1 if together > 1 else _warps(tile, each))

    if strategy == "cooperative" or (strategy is None and cooperative and reduces):
        # A smaller tile has fewer warps, so that a multiprocessor holds more of them.
        if (tiles > 1 or strategy) and reduces and tiles * groups <= cooperative * (16 // _warps(tile, each)):
            return LaunchPlan("cooperative", tile, tiles, each, 1, _warps(tile, each))
        if strategy:
            raise ValueError(
                f"strategy: 'cooperative' needs sums, and {cooperative} programs "
                f"at most, got {groups} x {tensors} x {count} elements of {itemsize} bytes"
            )
    return LaunchPlan("two_launch", tile, tiles, each, 1, _warps(tile, each))


def _warps(elements: int, each: int) -> int:
    """A thread for each lane, so that sixteen warps or more share a multiprocessor, with at most 128 registers each."""
    return min(max(elements // (VECTOR * 32 * each), 1), 16)
