"""The Triton kernels: moments of tiles, weights, combine.

One family serves every rule. The formula and everything else that a program and a launch fix are compile-time values
(:class:`~fastcfg_kernels.backends.triton.spec.Spec`); scales, sizes and strides are run-time values. The arithmetic is
that of :mod:`fastcfg_kernels.backends.torch.tiles`: centred sums, merged in Chan's way, in the difference basis, with
one rounding at the store.

A group is what one sum runs over, a sample as a rule, and a program holds one tile of it. Three ways to launch one
arithmetic:

* :func:`row_kernel`, one program a group or several: the tile is the group, read once and kept in registers;
* :func:`cooperative_kernel`: the same with several programs a group, which wait for each other;
* :func:`tile_kernel` and :func:`apply_kernel`: moments of tiles, then the combine; any size.

All cut a group into the same tiles, add within a tile in the same order, and merge tiles in the same order: their
results are equal bit by bit, however the compiler lays elements out over threads. Contraction to fma is off, since it
would follow the layout, and written out where it is wanted.
"""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

from .barrier import group_barrier
from .combine import store_block, store_stats, weigh
from .merge import merge_workspace, store_moments
from .sums import fixed
from .tiles import affine_space, as_number, digits, load_parameters, load_tile, tile_moments

__all__ = ["apply_kernel", "cooperative_kernel", "row_kernel", "tile_kernel"]


@triton.jit
def row_kernel(
    predictions, outs, tail, stats, parameters, strides, out_strides, tail_strides, outer, inner, groups, per_sample,
    count, WEIGH: tl.constexpr, SPEC: tl.constexpr,
):  # fmt: skip
    """One program guides ``SPEC.groups`` groups of at most a tile, all of them held in registers.

    Args:
        predictions: pointers to the predictions, the extras that are vectors, ``x`` of an affine program, and the
            elementwise factor and mask.
        outs: pointers, each of which may be one of the inputs.
        tail: pointers to what else a step reads.
        stats: pointer to ``[groups, SPEC.stats]``, nothing where there are none.
        parameters: numbers or pointers, as ``SPEC.parameters`` says.
        strides, out_strides, tail_strides: for each tensor a stride for each digit of the group, then of the element.
        outer, inner: sizes of a group's and an element's digits after the first.
        groups: how many there are; per_sample: how many of them a sample has.
        count: elements of a group.
        WEIGH: the formula.
    """
    count = as_number(count, False)
    group = tl.program_id(0).to(tl.int64) * SPEC.groups + tl.arange(0, SPEC.groups)[:, None, None]  # [GROUPS, 1, 1]
    live = group < groups  # [GROUPS, 1, 1]
    values = load_parameters(parameters, group, per_sample, live, SPEC)
    space = affine_space(values, SPEC.affine)
    at = digits(group, outer)
    tile = tl.full((), 0, tl.int32)
    blocks, places, insides = load_tile(predictions, strides, at, tile, count, inner, live, SPEC)
    means, sums, size = tile_moments(predictions, strides, at, tile, count, inner, live, space, blocks, insides, SPEC)
    if SPEC.mask > 0:
        size = tl.maximum(size, 1.0)
    weights = weigh(means, sums, size, values, WEIGH, SPEC)
    if SPEC.stats > 0:
        store_stats(stats, weights, group, live, SPEC)
    for r in tl.static_range(fixed(SPEC.repeats)):
        store_block(outs, out_strides, tail, tail_strides, places[r], insides[r], blocks[r], weights, space, SPEC)


@triton.jit
def tile_kernel(
    predictions, parameters, workspace, strides, outer, inner, per_sample, count, tiles, pitch, SPEC: tl.constexpr
):  # fmt: skip
    """First of two launches: a program writes the moments of one tile of a group.

    Args:
        workspace: ``[groups, SPEC.slots, pitch]`` in the accumulator's dtype.
        tiles: of a group; pitch: at least that.
    """
    count = as_number(count, SPEC.wide)
    tile = tl.program_id(0) % tiles
    group = tl.zeros((1, 1, 1), tl.int64) + tl.program_id(0) // tiles  # [1, 1, 1]
    live = group >= 0
    space = affine_space(load_parameters(parameters, group, per_sample, live, SPEC), SPEC.affine)
    at = digits(group, outer)
    blocks, _, insides = load_tile(predictions, strides, at, tile, count, inner, live, SPEC)
    means, sums, size = tile_moments(predictions, strides, at, tile, count, inner, live, space, blocks, insides, SPEC)
    store_moments(means, sums, size, workspace, group, tile, pitch, SPEC)


@triton.jit
def apply_kernel(
    predictions, outs, tail, stats, parameters, workspace, strides, out_strides, tail_strides, outer, inner, per_sample,
    count, tiles, pitch, WEIGH: tl.constexpr, SPEC: tl.constexpr,
):  # fmt: skip
    """Second of two launches: a program merges the moments of a group's tiles and combines one tile.

    A rule without sums is this launch alone. Arguments as for :func:`row_kernel` and :func:`tile_kernel`.
    """
    count = as_number(count, SPEC.wide)
    tile = tl.program_id(0) % tiles
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    group = tl.zeros((1, 1, 1), tl.int64) + sample  # [1, 1, 1]
    live = group >= 0
    values = load_parameters(parameters, group, per_sample, live, SPEC)
    space = affine_space(values, SPEC.affine)
    at = digits(group, outer)
    # Before the merge, whose loads they do not wait for.
    blocks, places, insides = load_tile(predictions, strides, at, tile, count, inner, live, SPEC)
    means, sums, summed = merge_workspace(workspace, sample, tiles, pitch, count, SPEC)
    weights = weigh(means, sums, summed, values, WEIGH, SPEC)
    if SPEC.stats > 0:
        store_stats(stats, weights, group, live & (group * 0 + tile == 0), SPEC)
    for r in tl.static_range(fixed(SPEC.repeats)):
        store_block(outs, out_strides, tail, tail_strides, places[r], insides[r], blocks[r], weights, space, SPEC)


@triton.jit
def cooperative_kernel(
    predictions, outs, tail, stats, parameters, workspace, arrivals, strides, out_strides, tail_strides, outer, inner,
    per_sample, count, tiles, pitch, WEIGH: tl.constexpr, SPEC: tl.constexpr,
):  # fmt: skip
    """One launch for a group of several programs, all of them on the device at once: they meet at a barrier between
    the moments and the combine, and keep their tiles in registers meanwhile.

    Arguments as for :func:`row_kernel` and :func:`tile_kernel`; ``arrivals`` is ``[groups]``, for
    :func:`~fastcfg_kernels.backends.triton.barrier.group_barrier`.
    """
    count = as_number(count, SPEC.wide)
    tile = tl.program_id(0) % tiles
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    group = tl.zeros((1, 1, 1), tl.int64) + sample  # [1, 1, 1]
    live = group >= 0
    values = load_parameters(parameters, group, per_sample, live, SPEC)
    space = affine_space(values, SPEC.affine)
    at = digits(group, outer)
    blocks, places, insides = load_tile(predictions, strides, at, tile, count, inner, live, SPEC)
    means, sums, size = tile_moments(predictions, strides, at, tile, count, inner, live, space, blocks, insides, SPEC)
    store_moments(means, sums, size, workspace, group, tile, pitch, SPEC)
    # Every program needs the moments of all of them.
    group_barrier(arrivals + sample, tile, as_number(tiles, False))
    means, sums, summed = merge_workspace(workspace, sample, tiles, pitch, count, SPEC)
    weights = weigh(means, sums, summed, values, WEIGH, SPEC)
    if SPEC.stats > 0:
        store_stats(stats, weights, group, live & (group * 0 + tile == 0), SPEC)
    for r in tl.static_range(fixed(SPEC.repeats)):
        store_block(outs, out_strides, tail, tail_strides, places[r], insides[r], blocks[r], weights, space, SPEC)
