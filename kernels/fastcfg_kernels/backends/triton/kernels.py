"""The Triton kernels: Gram of tiles, weights, combine.

One family serves every rule. The number of predictions, the sums and the formula are compile-time values; scales,
sizes and strides are run-time values. The arithmetic is that of :mod:`fastcfg_kernels.backends.torch.tiles`: centred
tile sums, merged in Chan's way, in the difference basis, with one rounding at the store.

A group is what one sum runs over, a sample as a rule. Three ways to launch one arithmetic:

* :func:`row_kernel`, one program a group or several: reads each element once and keeps it in registers;
* :func:`cooperative_kernel`: the same with several programs a group, which wait for each other;
* :func:`tile_kernel` and :func:`apply_kernel`: partial sums of tiles, then the combine; any size.

All cut a group into the same tiles, add within a tile in the same order, and merge tiles in the same order: their
results are equal bit by bit, however the compiler lays elements out over threads. Contraction to fma is off, since it
would follow the layout, and written out where it is wanted.
"""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

from .barrier import group_barrier
from .combine import store_stats, store_tile, weigh
from .merge import merge_tiles, merge_workspace, store_chunk
from .tiles import affine_space, as_number, digits, first_elements, load_parameters, load_tile, tile_size, tile_sums

__all__ = ["apply_kernel", "cooperative_kernel", "row_kernel", "tile_kernel"]


@triton.jit
def _elements(t, count, inner, live, TILE: tl.constexpr, WIDE: tl.constexpr):
    """Digits of the elements of tile ``t``, and which of them there are."""
    if WIDE:
        index = t.to(tl.int64) * TILE + tl.arange(0, TILE)[None, :]
    else:
        index = t.to(tl.int32) * TILE + tl.arange(0, TILE)[None, :]
    return digits(index, inner), (index < count) & live


@triton.jit
def _first(t, leader, inner, TILE: tl.constexpr):
    """Digits of element ``leader`` of tile ``t``."""
    return digits(leader.to(tl.int64) + t.to(tl.int64) * TILE, inner)


@triton.jit
def _chunk(
    predictions, strides, at, chunk, count, inner, live, TILES: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """A chunk of ``TILES`` tiles: ``(blocks, places, insides)``, an entry for each tile."""
    blocks = ()
    places = ()
    insides = ()
    for i in tl.static_range(TILES):
        element, inside = _elements(chunk * TILES + i, count, inner, live, TILE, WIDE)
        blocks = blocks + (load_tile(predictions, strides, at + element, inside, WHOLE),)
        places = places + (at + element,)
        insides = insides + (inside,)
    return blocks, places, insides


@triton.jit
def _chunk_sums(
    predictions, strides, at, chunk, count, inner, live, space, blocks, insides, PAIRS: tl.constexpr,
    CENTRED: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, FACTOR: tl.constexpr, MASK: tl.constexpr,
    GROUPS: tl.constexpr, TILES: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partial sums of a chunk's tiles: ``(means, sums, sizes)``, tile by tile; sizes count what a mask leaves in."""
    means = ()
    sums = ()
    sizes = ()
    for i in tl.static_range(TILES):
        t = chunk * TILES + i
        size = tile_size(count, tl.zeros((1, 1), tl.int64) + t, TILE)
        leader = tl.zeros((1, 1), tl.int64)
        inside = insides[i]
        if MASK > 0:
            inside = inside & (blocks[i][MASK] != 0)
            size = tl.sum(inside.to(tl.int64), axis=1, keep_dims=True)
            leader = tl.min(tl.where(inside, tl.arange(0, TILE)[None, :], TILE - 1), axis=1, keep_dims=True)
        there = live & (size > 0)
        place = at + _first(t, leader, inner, TILE)
        first = first_elements(predictions, strides, place, there, space, SIZE, WIDTH, FACTOR, ACC)
        means_of_tile, sums_of_tile = tile_sums(
            blocks[i], first, inside, size, space, PAIRS, CENTRED, SIZE, WIDTH, FACTOR, MASK, GROUPS, TILE, WHOLE, ACC
        )
        means = means + means_of_tile
        sums = sums + sums_of_tile
        sizes = sizes + (size,)
    return means, sums, sizes


@triton.jit
def row_kernel(
    predictions,
    outs,
    tail,
    stats,
    parameters,
    strides,
    out_strides,
    tail_strides,
    outer,
    inner,
    groups,
    per_sample,
    count,
    WEIGH: tl.constexpr,
    PAIRS: tl.constexpr,
    CENTRED: tl.constexpr,
    MEANS: tl.constexpr,
    PARAMS: tl.constexpr,
    RESULTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
    CLAMP: tl.constexpr,
    STATS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
    MASK: tl.constexpr,
    AFFINE: tl.constexpr,
    GROUPS: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    ACC: tl.constexpr,
):
    """One program guides ``GROUPS`` groups of at most ``TILES * TILE`` elements, all of them held in registers.

    Args:
        predictions: pointers to the predictions, the extras that are vectors, ``x`` of an affine program, and the
            elementwise factor and mask, whose numbers are ``FACTOR`` and ``MASK`` (0 where there is none).
        outs: pointers, each of which may be one of the inputs.
        tail: pointers to what else a step reads.
        stats: pointer to ``[groups, STATS]``, nothing where there are none.
        parameters: numbers or pointers, as ``PARAMS`` says.
        strides, out_strides, tail_strides: for each tensor a stride for each digit of the group, then of the element.
        outer, inner: sizes of a group's and an element's digits after the first.
        groups: how many there are; per_sample: how many of them a sample has.
        count: elements of a group.
        WHOLE: whether every program's block is full: no element has to be masked.
    """
    count = as_number(count, False)
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)[:, None]
    live = group < groups
    values = load_parameters(parameters, group, per_sample, live, PARAMS, ACC)
    space = affine_space(values, AFFINE)
    at = digits(group, outer)
    chunk = tl.full((), 0, tl.int32)
    blocks, places, insides = _chunk(predictions, strides, at, chunk, count, inner, live, TILES, TILE, False, WHOLE)
    means, sums, sizes = _chunk_sums(
        predictions, strides, at, chunk, count, inner, live, space, blocks, insides, PAIRS, CENTRED, SIZE, WIDTH,
        FACTOR, MASK, GROUPS, TILES, TILE, WHOLE, ACC,
    )  # fmt: skip
    summed = count
    if MASK > 0:
        summed = sizes[0]
        for t in tl.static_range(1, TILES):
            summed += sizes[t]
        summed = tl.maximum(summed, 1)
    means, sums = merge_tiles(means, sums, sizes, summed, PAIRS, CENTRED, ACC)
    weights = weigh(means, sums, summed, values, WEIGH, MEANS, ACC)
    if STATS > 0:
        store_stats(stats, weights, group, live, STATS, ACC)
    for t in tl.static_range(TILES):
        store_tile(
            outs, out_strides, tail, tail_strides, places[t], insides[t], blocks[t], weights, space, RESULTS, OUTPUTS,
            STEP, SIZE, WIDTH, FACTOR, CLAMP, WHOLE, ACC,
        )  # fmt: skip


@triton.jit
def tile_kernel(
    predictions,
    parameters,
    workspace,
    strides,
    outer,
    inner,
    per_sample,
    count,
    tiles,
    pitch,
    PAIRS: tl.constexpr,
    CENTRED: tl.constexpr,
    PARAMS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
    MASK: tl.constexpr,
    AFFINE: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    ACC: tl.constexpr,
):
    """First of two launches: a program writes the partial sums of ``TILES`` tiles of one group.

    Args:
        workspace: ``[groups, slots, pitch]`` in ``ACC``, slots being the means and then the pairs' sums.
        tiles: of a group; pitch: at least that.
        WIDE: whether a group's elements need 64-bit numbers.
    """
    count = as_number(count, WIDE)
    chunks = tl.cdiv(tiles, TILES)
    chunk = tl.program_id(0) % chunks
    group = tl.zeros((1, 1), tl.int64) + tl.program_id(0) // chunks
    live = group >= 0
    space = affine_space(load_parameters(parameters, group, per_sample, live, PARAMS, ACC), AFFINE)
    at = digits(group, outer)
    blocks, _, insides = _chunk(predictions, strides, at, chunk, count, inner, live, TILES, TILE, WIDE, WHOLE)
    means, sums, sizes = _chunk_sums(
        predictions, strides, at, chunk, count, inner, live, space, blocks, insides, PAIRS, CENTRED, SIZE, WIDTH,
        FACTOR, MASK, 1, TILES, TILE, WHOLE, ACC,
    )  # fmt: skip
    store_chunk(means, sums, sizes, workspace, group, chunk, tiles, pitch, PAIRS, CENTRED, MASK, TILES)


@triton.jit
def apply_kernel(
    predictions,
    outs,
    tail,
    stats,
    parameters,
    workspace,
    strides,
    out_strides,
    tail_strides,
    outer,
    inner,
    per_sample,
    count,
    tiles,
    pitch,
    WEIGH: tl.constexpr,
    PAIRS: tl.constexpr,
    CENTRED: tl.constexpr,
    MEANS: tl.constexpr,
    PARAMS: tl.constexpr,
    RESULTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
    CLAMP: tl.constexpr,
    STATS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
    MASK: tl.constexpr,
    AFFINE: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    ACC: tl.constexpr,
):
    """Second of two launches: a program merges the group's partial sums and combines ``TILES`` tiles.

    A rule without sums is this launch alone. Arguments as for :func:`row_kernel` and :func:`tile_kernel`.
    """
    count = as_number(count, WIDE)
    chunks = tl.cdiv(tiles, TILES)
    chunk = tl.program_id(0) % chunks
    group = tl.zeros((1, 1), tl.int64) + tl.program_id(0) // chunks
    live = group >= 0
    values = load_parameters(parameters, group, per_sample, live, PARAMS, ACC)
    space = affine_space(values, AFFINE)
    means, sums, summed = merge_workspace(workspace, group, tiles, pitch, count, PAIRS, CENTRED, MASK, TILE, ACC)
    weights = weigh(means, sums, summed, values, WEIGH, MEANS, ACC)
    if STATS > 0:
        store_stats(stats, weights, group, live & (group * 0 + chunk == 0), STATS, ACC)
    at = digits(group, outer)
    for i in tl.static_range(TILES):
        element, inside = _elements(chunk * TILES + i, count, inner, live, TILE, WIDE)
        raw = load_tile(predictions, strides, at + element, inside, WHOLE)
        store_tile(
            outs, out_strides, tail, tail_strides, at + element, inside, raw, weights, space, RESULTS, OUTPUTS, STEP,
            SIZE, WIDTH, FACTOR, CLAMP, WHOLE, ACC,
        )  # fmt: skip


@triton.jit
def cooperative_kernel(
    predictions,
    outs,
    tail,
    stats,
    parameters,
    workspace,
    arrivals,
    strides,
    out_strides,
    tail_strides,
    outer,
    inner,
    per_sample,
    count,
    tiles,
    pitch,
    WEIGH: tl.constexpr,
    PAIRS: tl.constexpr,
    CENTRED: tl.constexpr,
    MEANS: tl.constexpr,
    PARAMS: tl.constexpr,
    RESULTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
    CLAMP: tl.constexpr,
    STATS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    FACTOR: tl.constexpr,
    MASK: tl.constexpr,
    AFFINE: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
    WHOLE: tl.constexpr,
    ACC: tl.constexpr,
):
    """One launch for a group of several programs, all of them on the device at once: they meet at a barrier between
    the partial sums and the combine, and keep their chunks in registers meanwhile.

    Arguments as for :func:`row_kernel` and :func:`tile_kernel`; ``arrivals`` is ``[groups]``, for
    :func:`~fastcfg_kernels.backends.triton.barrier.group_barrier`.
    """
    count = as_number(count, WIDE)
    chunks = tl.cdiv(tiles, TILES)
    chunk = tl.program_id(0) % chunks
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    group = tl.zeros((1, 1), tl.int64) + sample
    live = group >= 0
    values = load_parameters(parameters, group, per_sample, live, PARAMS, ACC)
    space = affine_space(values, AFFINE)
    at = digits(group, outer)
    blocks, places, insides = _chunk(predictions, strides, at, chunk, count, inner, live, TILES, TILE, WIDE, WHOLE)
    means, sums, sizes = _chunk_sums(
        predictions, strides, at, chunk, count, inner, live, space, blocks, insides, PAIRS, CENTRED, SIZE, WIDTH,
        FACTOR, MASK, 1, TILES, TILE, WHOLE, ACC,
    )  # fmt: skip
    store_chunk(means, sums, sizes, workspace, group, chunk, tiles, pitch, PAIRS, CENTRED, MASK, TILES)
    group_barrier(arrivals + sample, chunk, chunks)
    means, sums, summed = merge_workspace(workspace, group, tiles, pitch, count, PAIRS, CENTRED, MASK, TILE, ACC)
    weights = weigh(means, sums, summed, values, WEIGH, MEANS, ACC)
    if STATS > 0:
        store_stats(stats, weights, group, live & (group * 0 + chunk == 0), STATS, ACC)
    for t in tl.static_range(TILES):
        store_tile(
            outs, out_strides, tail, tail_strides, places[t], insides[t], blocks[t], weights, space, RESULTS, OUTPUTS,
            STEP, SIZE, WIDTH, FACTOR, CLAMP, WHOLE, ACC,
        )  # fmt: skip
