"""The Triton kernels: Gram of tiles, weights, combine.

One family serves every rule. The number of predictions, the sums and the formula are compile-time values; scales,
batch and length are run-time values. The arithmetic is that of :mod:`fastcfg_kernels.tiles`: centred tile sums,
merged in Chan's way, in the difference basis, with one rounding at the store.

Two launches of one arithmetic:

* :func:`row_kernel`, one program a sample: reads each prediction once and keeps it in registers;
* :func:`tile_kernel` and :func:`apply_kernel`: partial sums of tiles, then the combine; any size.

Both cut a sample into the same tiles of ``TILE`` elements and merge their partial sums lane by lane in the same
order.
"""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

from .triton_combine import store_tile, weigh
from .triton_tiles import first_elements, load_sample, load_tile, tile_sums

__all__ = ["MERGE", "apply_kernel", "row_kernel", "tile_kernel"]

MERGE = 128
"""Lanes over which the partial sums of tiles are merged: tile ``t`` belongs to lane ``t % MERGE``."""

_MERGE = tl.constexpr(MERGE)


@triton.jit
def row_kernel(
    predictions,
    outs,
    tail,
    params,
    strides,
    out_strides,
    tail_strides,
    count,
    WEIGH: tl.constexpr,
    PAIRS: tl.constexpr,
    CENTRED: tl.constexpr,
    MEANS: tl.constexpr,
    STRIDES: tl.constexpr,
    RESULTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    CLAMP: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    AFFINE: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
):
    """One program guides one sample of at most ``TILES * TILE`` elements, all of them held in registers.

    Args:
        predictions: pointers to the predictions, the extras that are vectors, and ``x`` of an affine program; sample
            ``b`` of ``k`` starts at ``b * strides[k]``, contiguous.
        outs: pointers, sample ``b`` of ``o`` at ``b * out_strides[o]``. Each may be one of the inputs.
        tail: pointers to what else a step reads.
        params: numbers (``STRIDES[i] < 0``) or pointers to ``[B]`` (stride 1) or 0-dim (stride 0) tensors.
        count: elements of a sample.
    """
    b = tl.program_id(0).to(tl.int64)
    rows, values, space = load_sample(predictions, params, strides, b, STRIDES, AFFINE, ACC)
    blocks = ()
    for t in tl.static_range(TILES):
        blocks = blocks + (load_tile(predictions, rows, t * TILE, count, TILE),)

    lane = tl.arange(0, _MERGE)
    slots: tl.constexpr = len(CENTRED) + len(PAIRS)
    lanes = ()
    for _ in tl.static_range(slots):
        lanes = lanes + (tl.zeros((_MERGE,), ACC),)
    for t in tl.static_range(TILES):
        size = tl.minimum(count - t * TILE, TILE)
        first = first_elements(predictions, rows, t * TILE, space, SIZE, ACC)
        partial = tile_sums(blocks[t], first, size, space, PAIRS, CENTRED, SIZE, TILE, ACC)
        filled = ()
        for s in tl.static_range(slots):
            filled = filled + (tl.where(lane == t, partial[s], lanes[s]),)
        lanes = filled

    sizes = tl.minimum(tl.maximum(count - lane * TILE, 0), TILE).to(ACC)
    means = ()
    centred = ()
    for i in tl.static_range(len(CENTRED)):
        pivot = tl.sum(tl.where(lane == 0, lanes[i], 0.0), axis=0)
        shift = tl.where(sizes > 0, lanes[i] - pivot, 0.0)
        mean = tl.sum(shift * sizes, axis=0) / count.to(ACC)
        means = means + (pivot + mean,)
        centred = centred + (shift - mean,)
    sums = ()
    for i in tl.static_range(len(PAIRS)):
        value = lanes[len(CENTRED) + i]
        if PAIRS[i][0]:
            value += centred[PAIRS[i][1]] * centred[PAIRS[i][2]] * sizes
        sums = sums + (tl.sum(value, axis=0),)

    weights = weigh(means, sums, count, values, WEIGH, MEANS, ACC)
    for t in tl.static_range(TILES):
        store_tile(
            outs, b, out_strides, t * TILE, count, blocks[t], tail, tail_strides, weights, space, RESULTS, OUTPUTS,
            ROWS, SIZE, WIDTH, CLAMP, TILE, ACC,
        )  # fmt: skip


@triton.jit
def tile_kernel(
    predictions,
    params,
    workspace,
    strides,
    count,
    tiles,
    PAIRS: tl.constexpr,
    CENTRED: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDES: tl.constexpr,
    AFFINE: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
):
    """First of two launches: program ``(t, b)`` writes the partial sums of tile ``t`` of sample ``b``.

    ``workspace`` is ``[B, slots, tiles]`` in ``ACC``, slots being the means and then the pairs' sums.
    """
    t = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    start = t.to(tl.int64) * TILE
    rows, _, space = load_sample(predictions, params, strides, b, STRIDES, AFFINE, ACC)
    raw = load_tile(predictions, rows, start, count, TILE)
    size = tl.minimum(count - start, TILE)
    partial = tile_sums(
        raw, first_elements(predictions, rows, start, space, SIZE, ACC), size, space, PAIRS, CENTRED, SIZE, TILE, ACC
    )
    slots: tl.constexpr = len(CENTRED) + len(PAIRS)
    for s in tl.static_range(slots):
        tl.store(workspace + (b * slots + s) * tiles + t, partial[s])


@triton.jit
def _spread(workspace, row, index, tiles, sizes):
    """Tiles' means relative to the first tile's; zero where there is no tile."""
    mean = tl.load(workspace + row + index, mask=index < tiles, other=0.0)
    return tl.where(sizes > 0, mean - tl.load(workspace + row), 0.0)


@triton.jit
def apply_kernel(
    predictions,
    outs,
    tail,
    params,
    workspace,
    strides,
    out_strides,
    tail_strides,
    count,
    tiles,
    WEIGH: tl.constexpr,
    PAIRS: tl.constexpr,
    CENTRED: tl.constexpr,
    MEANS: tl.constexpr,
    STRIDES: tl.constexpr,
    RESULTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    CLAMP: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    AFFINE: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
):
    """Second of two launches: program ``(t, b)`` merges the sample's partial sums and combines tile ``t``.

    A rule without sums is this launch alone. Arguments as for :func:`row_kernel` and :func:`tile_kernel`.
    """
    t = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    rows, values, space = load_sample(predictions, params, strides, b, STRIDES, AFFINE, ACC)

    slots: tl.constexpr = len(CENTRED) + len(PAIRS)
    lane = tl.arange(0, _MERGE)
    offsets_of_mean = ()
    means = ()
    for i in tl.static_range(len(CENTRED)):
        row = (b * slots + i) * tiles
        lanes = tl.zeros((_MERGE,), ACC)
        for chunk in range(0, tiles, _MERGE):
            index = chunk + lane
            sizes = tl.minimum(tl.maximum(count - index.to(tl.int64) * TILE, 0), TILE).to(ACC)
            lanes += _spread(workspace, row, index, tiles, sizes) * sizes
        mean = tl.sum(lanes, axis=0) / count.to(ACC)
        offsets_of_mean = offsets_of_mean + (mean,)
        means = means + (tl.load(workspace + row) + mean,)
    sums = ()
    for i in tl.static_range(len(PAIRS)):
        row = (b * slots + len(CENTRED) + i) * tiles
        lanes = tl.zeros((_MERGE,), ACC)
        for chunk in range(0, tiles, _MERGE):
            index = chunk + lane
            value = tl.load(workspace + row + index, mask=index < tiles, other=0.0)
            if PAIRS[i][0]:
                sizes = tl.minimum(tl.maximum(count - index.to(tl.int64) * TILE, 0), TILE).to(ACC)
                spread_x = _spread(workspace, (b * slots + PAIRS[i][1]) * tiles, index, tiles, sizes)
                spread_y = _spread(workspace, (b * slots + PAIRS[i][2]) * tiles, index, tiles, sizes)
                spread_x = spread_x - offsets_of_mean[PAIRS[i][1]]
                spread_y = spread_y - offsets_of_mean[PAIRS[i][2]]
                value += spread_x * spread_y * sizes
            lanes += value
        sums = sums + (tl.sum(lanes, axis=0),)

    weights = weigh(means, sums, count, values, WEIGH, MEANS, ACC)
    start = t.to(tl.int64) * TILE
    raw = load_tile(predictions, rows, start, count, TILE)
    store_tile(
        outs, b, out_strides, start, count, raw, tail, tail_strides, weights, space, RESULTS, OUTPUTS, ROWS, SIZE,
        WIDTH, CLAMP, TILE, ACC,
    )  # fmt: skip
