"""How a program is launched on a GPU: plain Python arithmetic on sizes, no autotuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .tiles import TILE

__all__ = ["LaunchPlan", "Strategy", "plan_launch"]

Strategy = Literal["row", "two_launch"]

# A sample held by one program: with the sums of CFG and rescale, four tiles of two predictions fit the registers of
# 16 warps without a spill on sm_80 to sm_120; eight bf16 tiles (also 128 KiB) spill a hundred instructions.
ROW_BYTES = 131_072
ROW_TILES = 4
NUM_WARPS = 16


@dataclass(frozen=True)
class LaunchPlan:
    """A launch.

    Attributes:
        strategy: ``row`` (one launch, one read) or ``two_launch`` (partial sums, then apply).
        tile: elements of a tile, the same for every strategy so that sums are the same.
        tiles: tiles of a sample.
        num_warps: warps of a program, likewise.
    """

    strategy: Strategy
    tile: int
    tiles: int
    num_warps: int


def plan_launch(
    count: int, predictions: int, itemsize: int, *, reduces: bool = True, strategy: Strategy | None = None
) -> LaunchPlan:
    """Choose a launch by the size of one sample, never by the batch.

    Args:
        count: elements of a sample.
        predictions: tensors read.
        itemsize: bytes of an element.
        reduces: whether the rule has sums; one without is a single elementwise launch.
        strategy: force a strategy.

    Raises:
        ValueError: if ``strategy="row"`` is forced on a sample that does not fit one program.
    """
    tiles = -(-count // TILE)
    fits = tiles <= ROW_TILES and tiles * TILE * predictions * itemsize <= ROW_BYTES
    if strategy == "row" and not fits:
        raise ValueError(
            f"strategy: 'row' holds at most {ROW_BYTES} bytes and {ROW_TILES * TILE} elements of a sample, "
            f"got {predictions} x {count} elements of {itemsize} bytes"
        )
    chosen: Strategy = strategy or ("row" if fits and reduces else "two_launch")
    return LaunchPlan(chosen, TILE, tiles, NUM_WARPS)
