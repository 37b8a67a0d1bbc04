"""Device functions that write the moments of tiles and merge those of a group, in Chan's way and in one fixed order.

Tile ``t`` belongs to lane ``t % MERGE``. A lane adds its tiles one after the other, and the lanes are added as a tree.
The lanes are those of one warp, and every warp does the same: nobody waits for another.
"""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

from .sums import WARP, add_lanes, log2
from .tiles import tile_size

__all__ = ["MERGE", "merge_workspace", "store_moments"]

MERGE = WARP
"""Lanes over which the moments of tiles are merged."""

_MERGE = tl.constexpr(MERGE)
_AHEAD = tl.constexpr(4)  # Tiles of a lane that are loaded together: a loop would wait for each.


@triton.jit
def store_moments(means, sums, size, workspace, group, tile, pitch, SPEC: tl.constexpr):
    """Write the moments of one tile; ``workspace`` is ``[groups, slots, pitch]``.

    Args:
        means, sums, size: as :func:`.tiles.tile_moments` returned them; group: ``[1, 1, 1]``.
    """
    at = workspace + group * (SPEC.slots * pitch) + tile  # [1, 1, 1]
    for i in tl.static_range(len(SPEC.centred)):
        tl.store(at + i * pitch, means[i])
    for i in tl.static_range(len(SPEC.pairs)):
        tl.store(at + (len(SPEC.centred) + i) * pitch, sums[i])
    if SPEC.mask > 0:
        tl.store(at + (SPEC.slots - 1) * pitch, size.to(SPEC.acc))


@triton.jit
def _stored(start, slot, tile, tiles, pitch):
    """A slot of tiles, zero beyond the last one. Other programs wrote it: it is read past the first cache."""
    return tl.load(start + slot * pitch + tile, mask=tile < tiles, other=0.0, cache_modifier=".cg")


@triton.jit
def _sizes(start, tile, tiles, pitch, count, SPEC: tl.constexpr):
    """Elements of tiles, ``[MERGE]``, and none beyond the last one."""
    if SPEC.mask > 0:
        return _stored(start, SPEC.slots - 1, tile, tiles, pitch)
    elif SPEC.full:
        return tl.where(tile < tiles, 1.0 * SPEC.tile, tl.zeros((_MERGE,), SPEC.acc))
    else:
        return tile_size(count, tile, SPEC.tile).to(SPEC.acc)


@triton.jit
def _total(lanes):
    """The sum of ``[MERGE]``, as ``[1, 1, 1]``."""
    return tl.full((1, 1, 1), add_lanes(lanes, log2(_MERGE)), lanes.dtype)


@triton.jit
def merge_workspace(workspace, group, tiles, pitch, count, SPEC: tl.constexpr):
    """Merge the moments of a group's tiles: ``(means, sums, number of elements summed)``, ``[1, 1, 1]`` each.

    Sums are about the first tile's means, and are taken to the mean of all at the end: of T tiles it is at most
    ``sqrt(T - 1)`` of their standard deviations away, and what is subtracted is of the means of tiles alone, not of
    their elements.

    Args:
        group: its number, a scalar; tiles: how many it has.
    """
    start = workspace + group * (SPEC.slots * pitch)
    lane = tl.arange(0, _MERGE)  # [MERGE]
    nothing = tl.zeros((_MERGE,), SPEC.acc)  # [MERGE]
    firsts = ()
    shifts = ()
    for i in tl.static_range(len(SPEC.centred)):
        firsts = firsts + (tl.load(start + i * pitch, cache_modifier=".cg"),)
        shifts = shifts + (nothing,)
    sums = ()
    for _ in tl.static_range(len(SPEC.pairs)):
        sums = sums + (nothing,)
    summed = nothing
    for begin in range(0, tiles, _MERGE * _AHEAD):
        for j in tl.static_range(_AHEAD):
            tile = begin + j * _MERGE + lane  # [MERGE]
            sizes = _sizes(start, tile, tiles, pitch, count, SPEC)
            summed += sizes
            apart = ()
            weighted = ()
            moved = ()
            for i in tl.static_range(len(SPEC.centred)):
                mean = _stored(start, i, tile, tiles, pitch)
                apart = apart + (mean - firsts[i],)
                weighted = weighted + (apart[i] * sizes,)
                moved = moved + (shifts[i] + weighted[i],)
            shifts = moved
            added = ()
            for i in tl.static_range(len(SPEC.pairs)):
                value = sums[i] + _stored(start, len(SPEC.centred) + i, tile, tiles, pitch)
                if SPEC.pairs[i][0]:
                    value = tl.fma(weighted[SPEC.pairs[i][1]], apart[SPEC.pairs[i][2]], value)
                added = added + (value,)
            sums = added

    if SPEC.mask > 0:
        number = tl.maximum(_total(summed), 1.0)  # [1, 1, 1]
    else:
        number = tl.zeros((1, 1, 1), SPEC.acc) + count.to(SPEC.acc)
    means = ()
    totals = ()
    spreads = ()
    for i in tl.static_range(len(SPEC.centred)):
        totals = totals + (_total(shifts[i]),)
        spreads = spreads + (totals[i] / number,)
        means = means + (firsts[i] + spreads[i],)
    of_pairs = ()
    for i in tl.static_range(len(SPEC.pairs)):
        value = _total(sums[i])
        if SPEC.pairs[i][0]:
            value = tl.fma(-totals[SPEC.pairs[i][1]], spreads[SPEC.pairs[i][2]], value)
        of_pairs = of_pairs + (value,)
    return means, of_pairs, number
