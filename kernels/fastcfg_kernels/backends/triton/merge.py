"""Device functions that merge the partial sums of a group's tiles, in Chan's way and in one fixed order.

Tile ``t`` belongs to lane ``t % MERGE``. A lane adds its tiles one after the other, and the lanes are added as a tree.
"""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

from .sums import add_lanes, add_values
from .tiles import tile_size

__all__ = ["MERGE", "merge_tiles", "merge_workspace", "store_chunk"]

MERGE = 1024
"""Lanes over which the partial sums of tiles are merged."""

_MERGE = tl.constexpr(MERGE)


@triton.jit
def merge_tiles(means, sums, sizes, count, PAIRS: tl.constexpr, CENTRED: tl.constexpr, ACC: tl.constexpr):
    """Merge the partial sums of all tiles of a group, at hand as :func:`chunk_sums` returned them.

    Args:
        sizes: elements of each tile; count: of all.

    Returns:
        ``(means, sums)`` of the group, ``[GROUPS, 1]`` each.
    """
    merged_means = ()
    spreads = ()
    for i in tl.static_range(len(CENTRED)):
        parts = ()
        for t in tl.static_range(len(sizes)):
            parts = parts + ((means[t * len(CENTRED) + i] - means[i]) * sizes[t].to(ACC),)
        spread = add_values(parts) / count.to(ACC)
        spreads = spreads + (spread,)
        merged_means = merged_means + (means[i] + spread,)
    merged_sums = ()
    for i in tl.static_range(len(PAIRS)):
        parts = ()
        for t in tl.static_range(len(sizes)):
            value = sums[t * len(PAIRS) + i]
            if PAIRS[i][0]:
                x = means[t * len(CENTRED) + PAIRS[i][1]] - means[PAIRS[i][1]] - spreads[PAIRS[i][1]]
                y = means[t * len(CENTRED) + PAIRS[i][2]] - means[PAIRS[i][2]] - spreads[PAIRS[i][2]]
                value = value + x * y * sizes[t].to(ACC)
            parts = parts + (value,)
        merged_sums = merged_sums + (add_values(parts),)
    return merged_means, merged_sums


@triton.jit
def store_chunk(
    means, sums, sizes, workspace, group, chunk, tiles, pitch, PAIRS: tl.constexpr, CENTRED: tl.constexpr,
    MASK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write the partial sums of a chunk's tiles, those that there are: ``workspace`` is ``[G, slots, pitch]``,
    the last slot being the tiles' sizes where a ``MASK`` decides them.
    """
    slots: tl.constexpr = len(CENTRED) + len(PAIRS) + (MASK > 0)
    for t in tl.static_range(TILES):
        tile = tl.zeros((1, 1), tl.int32) + chunk * TILES + t
        at = workspace + group * (slots * pitch) + tile
        for i in tl.static_range(len(CENTRED)):
            tl.store(at + i * pitch, means[t * len(CENTRED) + i], mask=tile < tiles)
        for i in tl.static_range(len(PAIRS)):
            tl.store(at + (len(CENTRED) + i) * pitch, sums[t * len(PAIRS) + i], mask=tile < tiles)
        if MASK > 0:
            tl.store(at + (slots - 1) * pitch, sizes[t].to(workspace.dtype.element_ty), mask=tile < tiles)


@triton.jit
def _stored_size(start, slots, tiles, pitch, tile, count, MASK: tl.constexpr, TILE: tl.constexpr, ACC: tl.constexpr):
    """Elements of tiles, which a mask has decided and which are in the last slot then."""
    if MASK > 0:
        return tl.load(start + (slots - 1) * pitch + tile, mask=tile < tiles, other=0.0, cache_modifier=".cg")
    else:
        return tile_size(count, tile, TILE).to(ACC)


@triton.jit
def merge_workspace(
    workspace, group, tiles, pitch, count, PAIRS: tl.constexpr, CENTRED: tl.constexpr, MASK: tl.constexpr,
    TILE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """:func:`merge_tiles` of partial sums in the workspace, for one group and any number of tiles, and the number of
    elements that were summed."""
    slots: tl.constexpr = len(CENTRED) + len(PAIRS) + (MASK > 0)
    start = workspace + group * (slots * pitch)
    lane = tl.arange(0, _MERGE)[None, :]
    summed = count.to(ACC)
    if MASK > 0:
        lanes = tl.zeros((1, _MERGE), ACC)
        for chunk in range(0, tiles, _MERGE):
            lanes += _stored_size(start, slots, tiles, pitch, chunk + lane, count, MASK, TILE, ACC)
        summed = tl.maximum(add_lanes((lanes,), _MERGE)[0], 1.0)
    firsts = ()
    for i in tl.static_range(len(CENTRED)):
        firsts = firsts + (tl.load(start + i * pitch, cache_modifier=".cg"),)

    merged_means = ()
    spreads = ()
    if len(CENTRED) > 0:
        lanes = ()
        for _ in tl.static_range(len(CENTRED)):
            lanes = lanes + (tl.zeros((1, _MERGE), ACC),)
        for chunk in range(0, tiles, _MERGE):
            tile = chunk + lane
            sizes = _stored_size(start, slots, tiles, pitch, tile, count, MASK, TILE, ACC)
            added = ()
            for i in tl.static_range(len(CENTRED)):
                mean = tl.load(start + i * pitch + tile, mask=tile < tiles, other=0.0, cache_modifier=".cg")
                added = added + (lanes[i] + tl.where(tile < tiles, mean - firsts[i], 0.0) * sizes,)
            lanes = added
        totals = add_lanes(lanes, _MERGE)
        for i in tl.static_range(len(CENTRED)):
            spreads = spreads + (totals[i] / summed,)
            merged_means = merged_means + (firsts[i] + spreads[i],)

    merged_sums = ()
    if len(PAIRS) > 0:
        lanes = ()
        for _ in tl.static_range(len(PAIRS)):
            lanes = lanes + (tl.zeros((1, _MERGE), ACC),)
        for chunk in range(0, tiles, _MERGE):
            tile = chunk + lane
            sizes = _stored_size(start, slots, tiles, pitch, tile, count, MASK, TILE, ACC)
            shifts = ()
            for i in tl.static_range(len(CENTRED)):
                mean = tl.load(start + i * pitch + tile, mask=tile < tiles, other=0.0, cache_modifier=".cg")
                shifts = shifts + (tl.where(tile < tiles, mean - firsts[i] - spreads[i], 0.0),)
            added = ()
            for i in tl.static_range(len(PAIRS)):
                value = tl.load(
                    start + (len(CENTRED) + i) * pitch + tile, mask=tile < tiles, other=0.0, cache_modifier=".cg"
                )
                if PAIRS[i][0]:
                    value = value + shifts[PAIRS[i][1]] * shifts[PAIRS[i][2]] * sizes
                added = added + (lanes[i] + value,)
            lanes = added
        merged_sums = add_lanes(lanes, _MERGE)
    return merged_means, merged_sums, summed
