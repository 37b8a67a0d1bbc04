"""How a program is launched on a GPU: plain Python arithmetic on sizes, no autotuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..torch.tiles import TILE

__all__ = ["LaunchPlan", "Strategy", "plan_launch"]

Strategy = Literal["row", "cooperative", "two_launch"]

CHUNK_BYTES = 131_072
"""What a program holds in registers of its inputs at most."""
MAX_TILES = 4
"""Tiles of a chunk at most."""
MANY = 256
"""Programs of a group from which on a program of the two launches takes several tiles."""


@dataclass(frozen=True)
class LaunchPlan:
    """A launch.

    Attributes:
        strategy: ``row`` (one launch, one read, a group in one program), ``cooperative`` (the same with several
            programs a group, which wait for each other) or ``two_launch`` (partial sums, then apply).
        tile: elements of a tile; below :data:`~fastcfg_kernels.backends.torch.tiles.TILE` for a group that
            is smaller. Sums are the same whatever the strategy.
        tiles: tiles of a group.
        chunk: tiles of a program.
        groups: groups of a program.
        num_warps: warps of a program, of 32 threads. Sums do not depend on it.
    """

    strategy: Strategy
    tile: int
    tiles: int
    chunk: int
    groups: int
    num_warps: int

    def programs(self, groups: int) -> int:
        """Programs of a launch for so many groups."""
        return -(-groups // self.groups) * -(-self.tiles // self.chunk)


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _fits(tiles: int, width: int, tile: int = TILE) -> bool:
    return tiles <= MAX_TILES and tiles * tile * width <= CHUNK_BYTES


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
        cooperative: programs of a cooperative launch that the device holds at once; 0 where there is to be none.

    Raises:
        ValueError: if a strategy is forced that the sizes do not allow.
    """
    tiles = -(-count // TILE)
    tile = min(_power_of_two(count), TILE)
    width = tensors * itemsize
    fits = _fits(tiles, width, tile)
    if strategy == "row" or (strategy is None and fits and (reduces or tile < TILE)):
        if not fits:
            raise ValueError(
                f"strategy: 'row' holds at most {CHUNK_BYTES} bytes and {MAX_TILES * TILE} elements of a group, "
                f"got {tensors} x {count} elements of {itemsize} bytes"
            )
        together = min(TILE // tile, _power_of_two(groups))
        while not _fits(1, width, tile * together) and together > 1:
            together //= 2
        return LaunchPlan("row", tile, tiles, tiles, together, _warps(tiles * tile * together))

    if strategy == "cooperative" or (strategy is None and cooperative and reduces):
        chunk = next((c for c in (1, 2, 4) if -(-tiles // c) * groups <= cooperative), MAX_TILES)
        held = -(-tiles // chunk)
        if held > 1 and reduces and held * groups <= cooperative and _fits(chunk, width):
            return LaunchPlan("cooperative", TILE, tiles, chunk, 1, _warps(chunk * TILE))
        if strategy:
            raise ValueError(
                f"strategy: 'cooperative' needs sums over more than one program's elements, and {cooperative} programs "
                f"at most, got {groups} x {tensors} x {count} elements of {itemsize} bytes"
            )
    chunk = next((c for c in (1, 2) if -(-tiles // c) <= MANY), 4)
    while chunk > 1 and not _fits(chunk, width):
        chunk //= 2
    return LaunchPlan("two_launch", TILE, tiles, chunk, 1, _warps(chunk * TILE))


def _warps(elements: int) -> int:
    """Sixteen elements a thread up to eight warps, whose threads have 255 registers each for what is beyond."""
    return min(max(elements // 512, 1), 8)
