"""The kernel of the TensorRT plugin: one launch; inputs, integers, outputs in the order that a plugin passes them."""

# The compiler reads annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl
from fastcfg_kernels.triton_combine import combine, weigh
from fastcfg_kernels.triton_tiles import first_elements, load_sample, load_tile, tile_sums

__all__ = ["guidance_kernel"]


@triton.jit
def _entry(vector, lane, index):
    """One element of a vector that is held across lanes."""
    return tl.sum(tl.where(lane == index, vector, 0.0), axis=0)


@triton.jit
def guidance_kernel(
    predictions,
    params,
    count,
    outs,
    WEIGH: tl.constexpr,
    PAIRS: tl.constexpr,
    CENTRED: tl.constexpr,
    MEANS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CLAMP: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDES: tl.constexpr,
    UNITS: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
):
    """Program ``(b, t)`` sums sample ``b``, whatever its size, and writes its tiles ``t``, ``t + programs``, ….

    Every program of a sample sums all of it, from the cache after the first: a plugin is a single launch, with
    nothing between programs.

    Args:
        predictions, params, outs: pointers to contiguous ``[B, count]`` and ``[B]``.
        UNITS: strides of the predictions in units of ``count``, all 1.
        SLOTS: lanes for the means and sums, a power of two.
    """
    b = tl.program_id(0).to(tl.int64)
    strides = ()
    for k in tl.static_range(len(UNITS)):
        strides = strides + (count * UNITS[k],)
    rows, values, space = load_sample(predictions, params, strides, b, STRIDES, False, ACC)
    lane = tl.arange(0, SLOTS)
    held = tl.zeros((SLOTS,), ACC)  # Means of the centred vectors so far, then the sums.
    seen = tl.zeros((), ACC)
    if len(PAIRS) + len(CENTRED) > 0:
        for start in range(0, count, TILE):
            size = tl.minimum(count - start, TILE)
            raw = load_tile(predictions, rows, start, count, TILE)
            first = first_elements(predictions, rows, start, space, SIZE, ACC)
            partial = tile_sums(raw, first, size, space, PAIRS, CENTRED, SIZE, TILE, ACC)
            filled = tl.zeros((SLOTS,), ACC)
            for s in tl.static_range(len(CENTRED) + len(PAIRS)):
                filled = tl.where(lane == s, partial[s], filled)
            part = size.to(ACC)
            total = seen + part
            gap = tl.where(lane < len(CENTRED), filled - held, 0.0)
            merged = tl.where(lane < len(CENTRED), held + gap * (part / total), held + filled)
            for i in tl.static_range(len(PAIRS)):
                if PAIRS[i][0]:
                    between = _entry(gap, lane, PAIRS[i][1]) * _entry(gap, lane, PAIRS[i][2]) * (seen * part / total)
                    merged = tl.where(lane == len(CENTRED) + i, merged + between, merged)
            held = merged
            seen = total
    means = ()
    for i in tl.static_range(len(CENTRED)):
        means = means + (_entry(held, lane, i),)
    sums = ()
    for i in tl.static_range(len(PAIRS)):
        sums = sums + (_entry(held, lane, len(CENTRED) + i),)
    weights = weigh(means, sums, count, values, WEIGH, MEANS, ACC)
    for start in range(tl.program_id(1) * TILE, count, tl.num_programs(1) * TILE):
        raw = load_tile(predictions, rows, start, count, TILE)
        offsets = start + tl.arange(0, TILE).to(tl.int64)
        for o in tl.static_range(len(outs)):
            result = combine(raw, weights, space, o, OUTPUTS, SIZE, WIDTH, CLAMP, ACC)
            tl.store(outs[o] + b * count + offsets, result.to(outs[o].dtype.element_ty), mask=offsets < count)
