"""The kernel of the TensorRT plugin: one launch; inputs, integers, outputs in the order that a plugin passes them."""

# The compiler reads annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

__all__ = ["guidance_kernel"]


@triton.jit
def _load(pointers, start, stop):
    """A tile of every tensor, in its own dtype; zero from ``stop`` on."""
    raw = ()
    for k in tl.static_range(len(pointers)):
        raw = raw + (tl.load(pointers[k] + start, mask=start < stop, other=0.0),)
    return raw


@triton.jit
def _vectors(raw, SIZE: tl.constexpr, ACC: tl.constexpr):
    """The difference basis of ``SIZE`` predictions, the extras, and the predictions but for the base, in ``ACC``."""
    base = raw[0].to(ACC)
    found = (base,)
    for k in tl.static_range(1, SIZE):
        found = found + (raw[k].to(ACC) - base,)
    for k in tl.static_range(SIZE, len(raw)):
        found = found + (raw[k].to(ACC),)
    for k in tl.static_range(1, SIZE):
        found = found + (raw[k].to(ACC),)
    return found


@triton.jit
def _tile_sums(
    vectors, first, inside, size, PAIRS: tl.constexpr, CENTRED: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Means of the centred vectors of a tile, taken from its first elements, and then the pairs' sums."""
    found = ()
    centred = ()
    for i in tl.static_range(len(CENTRED)):
        shifted = tl.where(inside, vectors[CENTRED[i]] - first[CENTRED[i]], 0.0)
        mean = tl.sum(shifted, axis=0) / size.to(ACC)
        centred = centred + (tl.where(inside, shifted - mean, 0.0),)
        found = found + (mean + first[CENTRED[i]],)
    for i in tl.static_range(len(PAIRS)):
        if PAIRS[i][0]:
            found = found + (tl.sum(centred[PAIRS[i][1]] * centred[PAIRS[i][2]], axis=0),)
        else:
            found = found + (tl.sum(vectors[PAIRS[i][1]] * vectors[PAIRS[i][2]], axis=0),)
    return found


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
    SLOTS: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
):
    """Program ``(b, t)`` sums sample ``b``, whatever its size, and writes its tiles ``t``, ``t + programs``, ….

    Every program of a sample sums all of it, from the cache after the first: a plugin is a single launch, with
    nothing between programs.

    Args:
        predictions, params, outs: pointers to contiguous ``[B, count]`` and ``[B]``.
        SLOTS: lanes for the means and sums, a power of two.
    """
    b = tl.program_id(0).to(tl.int64)
    row, stop = b * count, (b + 1) * count
    values = ()
    for i in tl.static_range(len(params)):
        values = values + (tl.load(params[i] + b).to(ACC),)
    within = tl.arange(0, TILE)
    lane = tl.arange(0, SLOTS)
    held = tl.zeros((SLOTS,), ACC)  # Means of the centred vectors so far, then the sums.
    seen = tl.zeros((), ACC)
    if len(PAIRS) + len(CENTRED) > 0:
        for start in range(0, count, TILE):
            size = tl.minimum(count - start, TILE)
            vectors = _vectors(_load(predictions, row + start + within, stop), SIZE, ACC)
            first = _vectors(_load(predictions, row + start, stop), SIZE, ACC)
            partial = _tile_sums(vectors, first, within < size, size, PAIRS, CENTRED, ACC)
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
    for i in tl.static_range(len(MEANS)):
        sums = sums + (means[MEANS[i]],)
    weights = WEIGH(sums, count.to(ACC), values)
    for start in range(tl.program_id(1) * TILE, count, tl.num_programs(1) * TILE):
        place = row + start + within
        vectors = _vectors(_load(predictions, place, stop), SIZE, ACC)
        for o in tl.static_range(OUTPUTS):
            result = vectors[WIDTH - 1] * weights[o * WIDTH + WIDTH - 1]
            for k in tl.static_range(1, WIDTH):
                result = vectors[WIDTH - 1 - k] * weights[o * WIDTH + WIDTH - 1 - k] + result
            if CLAMP and o == 0:
                low, high = weights[OUTPUTS * WIDTH], weights[OUTPUTS * WIDTH + 1]
                result = tl.minimum(result, tl.full((), high, ACC), propagate_nan=tl.PropagateNan.ALL)
                result = tl.maximum(result, tl.full((), low, ACC), propagate_nan=tl.PropagateNan.ALL)
            tl.store(outs[o] + place, result.to(outs[o].dtype.element_ty), mask=place < stop)
