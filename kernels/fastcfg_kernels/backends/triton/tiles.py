"""Device functions of the reduce stage: where elements are, what a program loads, the moments of its tile.

A tile is ``[repeats, lanes, vector]`` elements of a group, and a program holds one of each of its groups, a block
``[GROUPS, LANES, VECTOR]`` for each repeat. What there is one of in a group is ``[GROUPS, 1, 1]``.
"""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

from .sums import WARP, add_vector, as_group, fixed, inverse, log2, merge_lanes, usual_layout

__all__ = [
    "affine_space",
    "as_number",
    "digits",
    "fixed_vectors",
    "load_block",
    "load_parameters",
    "load_tile",
    "offset",
    "tile_moments",
    "tile_size",
]

_WARP = tl.constexpr(WARP)


@triton.jit
def as_number(argument, WIDE: tl.constexpr):
    """An integer argument as the device's: one that equals 1 is Python's own inside a compiled kernel."""
    return tl.full((), argument, tl.int64 if WIDE else tl.int32)


@triton.jit
def digits(index, sizes):
    """An index in mixed radix, the most significant digit first; ``sizes`` are those of all the others."""
    rest = index
    found = ()
    for i in tl.static_range(len(sizes)):
        found = (rest % sizes[len(sizes) - 1 - i],) + found
        rest = rest // sizes[len(sizes) - 1 - i]
    return (rest,) + found


@triton.jit
def offset(place, strides, K: tl.constexpr):
    """Offset in tensor ``k`` of the group and element whose digits are ``place``, one stride for each digit."""
    result = place[0].to(tl.int64) * strides[K * len(place)]
    for i in tl.static_range(1, len(place)):
        result = result + place[i].to(tl.int64) * strides[K * len(place) + i]
    return result


@triton.jit
def load_block(pointers, strides, place, inside, WHOLE: tl.constexpr):
    """Blocks at ``place`` of every tensor, in their own dtype; zero where not ``inside``."""
    raw = ()
    for k in tl.static_range(len(pointers)):
        if WHOLE:
            raw = raw + (tl.load(pointers[k] + offset(place, strides, k)),)
        else:
            raw = raw + (tl.load(pointers[k] + offset(place, strides, k), mask=inside, other=0.0),)
    return raw


@triton.jit
def load_tile(predictions, strides, at, tile, count, inner, live, SPEC: tl.constexpr):
    """Tile number ``tile`` of each group: ``(blocks, places, insides)``, an entry for each repeat.

    Element ``(r, lane, v)`` of a tile is its ``(r * LANES + lane) * VECTOR + v``-th: a warp's loads are contiguous.

    Args:
        at: digits of the groups, ``[GROUPS, 1, 1]`` each.
    """
    blocks = ()
    places = ()
    insides = ()
    start = tile.to(tl.int64 if SPEC.wide else tl.int32) * SPEC.tile
    lane = tl.arange(0, SPEC.lanes)[None, :, None] * SPEC.vector  # [1, LANES, 1]
    element = lane + tl.arange(0, SPEC.vector)[None, None, :]  # [1, LANES, VECTOR]
    for r in tl.static_range(fixed(SPEC.repeats)):
        index = start + r * (SPEC.lanes * SPEC.vector) + element  # [1, LANES, VECTOR]
        inside = (index < count) & live  # [GROUPS, LANES, VECTOR]
        place = at + digits(index, inner)
        blocks = blocks + (load_block(predictions, strides, place, inside, SPEC.whole),)
        places = places + (place,)
        insides = insides + (inside,)
    return blocks, places, insides


@triton.jit
def fixed_vectors(raw, space, SPEC: tl.constexpr):
    """The fixed vectors in the accumulator's dtype: the difference basis, the extras, the predictions again.

    ``space`` is ``(shift, gain)``, the formulas working on ``shift * x + gain * prediction`` with x after the vectors
    of ``raw``; or it is empty. Deltas are multiplied by the elementwise factor where there is one.
    """
    base = raw[0].to(SPEC.acc)
    out = ()
    for k in tl.static_range(1, fixed(SPEC.size)):
        if SPEC.factor > 0:
            out = out + ((raw[k].to(SPEC.acc) - base) * raw[SPEC.factor].to(SPEC.acc),)
        else:
            out = out + (raw[k].to(SPEC.acc) - base,)
    predictions = ()
    for k in tl.static_range(1, fixed(SPEC.size)):
        predictions = predictions + (raw[k].to(SPEC.acc),)
    if len(space) == 2:
        offset = space[0] * raw[SPEC.width].to(SPEC.acc)
        scaled = (offset + space[1] * base,)
        for k in tl.static_range(fixed(SPEC.size) - 1):
            scaled = scaled + (space[1] * out[k],)
        for k in tl.static_range(fixed(SPEC.size), fixed(SPEC.width)):
            scaled = scaled + (raw[k].to(SPEC.acc),)
        for k in tl.static_range(fixed(SPEC.size) - 1):
            scaled = scaled + (offset + space[1] * predictions[k],)
        return scaled
    else:
        plain = (base,) + out
        for k in tl.static_range(fixed(SPEC.size), fixed(SPEC.width)):
            plain = plain + (raw[k].to(SPEC.acc),)
        return plain + predictions


@triton.jit
def load_parameters(parameters, group, per_sample, live, SPEC: tl.constexpr):
    """The groups' parameters in the accumulator's dtype, ``[GROUPS, 1, 1]`` or ``[1, 1, 1]``.

    Args:
        group: numbers of the groups, ``[GROUPS, 1, 1]``; per_sample: how many of them a sample has.
    """
    values = ()
    for i in tl.static_range(len(parameters)):
        if SPEC.parameters[i] == -1:
            values = values + (tl.full((1, 1, 1), parameters[i], SPEC.acc),)
        elif SPEC.parameters[i] == 0:
            values = values + (tl.load(parameters[i] + tl.zeros((1, 1, 1), tl.int32)).to(SPEC.acc),)
        elif SPEC.parameters[i] == 1:
            values = values + (tl.load(parameters[i] + group // per_sample, mask=live, other=0.0).to(SPEC.acc),)
        else:
            values = values + (tl.load(parameters[i] + group, mask=live, other=0.0).to(SPEC.acc),)
    return values


@triton.jit
def affine_space(values, AFFINE: tl.constexpr):
    """``(shift, gain)``, the last two parameters of an affine program, or nothing."""
    if AFFINE:
        return (values[len(values) - 2], values[len(values) - 1])
    else:
        return ()


@triton.jit
def tile_size(count, tile, TILE: tl.constexpr):
    """Elements of a tile: the last one may be partial, and there is none beyond it."""
    return tl.minimum(tl.maximum(count - tile.to(tl.int64) * TILE, 0), TILE)


@triton.jit
def _summed(block, inside, SPEC: tl.constexpr):
    """Which elements are summed: those that there are, and that the mask leaves in."""
    return inside & (block[SPEC.mask] != 0) if SPEC.mask > 0 else inside


@triton.jit
def _lane_counts(blocks, insides, tile, count, SPEC: tl.constexpr):
    """How many elements of each lane are summed, one block ``[GROUPS, LANES]``; none where all are."""
    if SPEC.full:
        return ()
    elif SPEC.mask > 0:
        found = _summed(blocks[0], insides[0], SPEC).to(SPEC.acc)
        for r in tl.static_range(1, fixed(SPEC.repeats)):
            found += _summed(blocks[r], insides[r], SPEC).to(SPEC.acc)
        return (add_vector(found, SPEC.groups, SPEC.lanes, SPEC.vector),)
    else:
        rest = count - tile.to(tl.int64) * SPEC.tile  # Of the tile, which may be more than a tile.
        lane = tl.zeros((SPEC.groups, SPEC.lanes), tl.int64) + tl.arange(0, SPEC.lanes)[None, :]  # [GROUPS, LANES]
        found = tl.minimum(tl.maximum(rest - lane * SPEC.vector, 0), SPEC.vector)
        for r in tl.static_range(1, fixed(SPEC.repeats)):
            start = (r * SPEC.lanes + lane) * SPEC.vector
            found += tl.minimum(tl.maximum(rest - start, 0), SPEC.vector)
        return (found.to(SPEC.acc),)


@triton.jit
def _pivots(blocks, insides, space, SPEC: tl.constexpr):
    """An element of each lane that is summed, of every centred vector: ``[GROUPS, LANES]`` each.

    It is the lane's first, which there is if any is; under a mask the first that is left in. Picking is a sum of it and
    of negative zeros: exact in any order, and no instruction where a thread holds the whole vector.
    """
    chosen = ()
    if SPEC.mask == 0:
        first = tl.arange(0, SPEC.vector)[None, None, :] == 0  # [1, 1, VECTOR]
        vectors = fixed_vectors(blocks[0], space, SPEC)
        for i in tl.static_range(len(SPEC.centred)):
            one = tl.where(first, vectors[SPEC.centred[i]], -0.0)  # [GROUPS, LANES, VECTOR]
            chosen = chosen + (add_vector(one, SPEC.groups, SPEC.lanes, SPEC.vector),)
    else:
        number = tl.arange(0, SPEC.vector)[None, None, :]  # [1, 1, VECTOR]
        none: tl.constexpr = SPEC.repeats * SPEC.vector
        earliest = tl.full((SPEC.groups, SPEC.lanes), none, tl.int32)
        for r in tl.static_range(fixed(SPEC.repeats)):
            here = tl.where(_summed(blocks[r], insides[r], SPEC), number + r * SPEC.vector, none)
            earliest = tl.minimum(earliest, tl.min(here, axis=2))  # Of integers: one result in every order.
        for _ in tl.static_range(len(SPEC.centred)):
            chosen = chosen + (tl.zeros((SPEC.groups, SPEC.lanes), SPEC.acc),)
        for r in tl.static_range(fixed(SPEC.repeats)):
            first = number + r * SPEC.vector == earliest[:, :, None]  # [GROUPS, LANES, VECTOR]
            vectors = fixed_vectors(blocks[r], space, SPEC)
            found = ()
            for i in tl.static_range(len(SPEC.centred)):
                one = tl.where(first, vectors[SPEC.centred[i]], -0.0)
                found = found + (chosen[i] + add_vector(one, SPEC.groups, SPEC.lanes, SPEC.vector),)
            chosen = found
    return chosen


@triton.jit
def _lane_sums(blocks, insides, pivots, space, SPEC: tl.constexpr):
    """Sums over each lane's elements: of the centred vectors less the pivots, and of the pairs' products, centred
    vectors less their pivots: ``[GROUPS, LANES]`` each.

    One repeat after the other, then neighbours in the vector.
    """
    shifts = ()
    sums = ()
    for r in tl.static_range(fixed(SPEC.repeats)):
        vectors = fixed_vectors(blocks[r], space, SPEC)
        shifted = ()
        for i in tl.static_range(len(SPEC.centred)):
            shift = vectors[SPEC.centred[i]] - pivots[i][:, :, None]  # [GROUPS, LANES, VECTOR]
            if not SPEC.full:
                shift = tl.where(_summed(blocks[r], insides[r], SPEC), shift, 0.0)
            shifted = shifted + (shift,)
        products = ()
        for i in tl.static_range(len(SPEC.pairs)):
            if SPEC.pairs[i][0]:
                x = shifted[SPEC.pairs[i][1]]
                y = shifted[SPEC.pairs[i][2]]
            else:
                x = vectors[SPEC.pairs[i][1]]
                y = vectors[SPEC.pairs[i][2]]
                if SPEC.mask > 0:
                    x = tl.where(_summed(blocks[r], insides[r], SPEC), x, 0.0)
                    y = tl.where(_summed(blocks[r], insides[r], SPEC), y, 0.0)
            if r == 0:
                products = products + (x * y,)
            else:
                products = products + (tl.fma(x, y, sums[i]),)
        sums = products
        if r == 0:
            shifts = shifted
        else:
            longer = ()
            for i in tl.static_range(len(SPEC.centred)):
                longer = longer + (shifts[i] + shifted[i],)
            shifts = longer
    of_shifts = ()
    for i in tl.static_range(len(SPEC.centred)):
        of_shifts = of_shifts + (add_vector(shifts[i], SPEC.groups, SPEC.lanes, SPEC.vector),)
    of_pairs = ()
    for i in tl.static_range(len(SPEC.pairs)):
        of_pairs = of_pairs + (add_vector(sums[i], SPEC.groups, SPEC.lanes, SPEC.vector),)
    return of_shifts, of_pairs


@triton.jit
def _centre(shifts, sums, pivots, first, counts, SPEC: tl.constexpr):
    """Moments of each lane: its shifts from the tile's pivot ``first``, and centred sums at its own means.

    A pivot among a lane's n elements is at most ``sqrt(n - 1)`` of their standard deviations from their mean, so that
    ``sum x y - sum x sum y / n`` about it loses a factor of n <= 32 at the very worst, and 2 as a rule. About a pivot
    for the whole tile it would be thousands.
    """
    if SPEC.full:
        number = 1.0 * (SPEC.repeats * SPEC.vector)
        of_one = 1.0 / (SPEC.repeats * SPEC.vector)
    else:
        number = counts[0]
        of_one = inverse(counts[0])
    means = ()
    moved = ()
    for i in tl.static_range(len(SPEC.centred)):
        means = means + (-shifts[i] * of_one,)
        moved = moved + (tl.fma(pivots[i] - tl.reshape(first[i], (SPEC.groups, 1)), number, shifts[i]),)
    centred = ()
    for i in tl.static_range(len(SPEC.pairs)):
        if SPEC.pairs[i][0]:
            centred = centred + (tl.fma(means[SPEC.pairs[i][1]], shifts[SPEC.pairs[i][2]], sums[i]),)
        else:
            centred = centred + (sums[i],)
    return moved, centred


@triton.jit
def _first_elements(pointers, strides, at, tile, count, inner, live, space, SPEC: tl.constexpr):
    """The centred vectors' first element of each tile, ``[GROUPS, 1, 1]`` each: the pivot of the tile's mean.

    Zero where a mask leaves it out, whose values mean nothing.
    """
    index = tl.zeros((1, 1, 1), tl.int64) + tile.to(tl.int64) * SPEC.tile
    raw = load_block(pointers, strides, at + digits(index, inner), live & (index < count), False)
    vectors = fixed_vectors(raw, space, SPEC)
    found = ()
    for i in tl.static_range(len(SPEC.centred)):
        if SPEC.mask > 0:
            found = found + (tl.where(raw[SPEC.mask] != 0, vectors[SPEC.centred[i]], 0.0),)
        else:
            found = found + (vectors[SPEC.centred[i]],)
    return found


@triton.jit
def _usual(shifts, sums, counts, lanes: tl.constexpr, SPEC: tl.constexpr):
    """Moments of lanes in the compiler's usual layout, all of them at once."""
    moments = shifts + sums + counts
    if len(moments) > 0:  # A rule without sums has none.
        moments = usual_layout(moments, SPEC.groups, lanes)
    centred: tl.constexpr = len(SPEC.centred)
    paired: tl.constexpr = len(SPEC.centred) + len(SPEC.pairs)
    return moments[:centred], moments[centred:paired], moments[paired:]


@triton.jit
def tile_moments(
    predictions, strides, at, tile, count, inner, live, space, blocks, insides, SPEC: tl.constexpr
):  # fmt: skip
    """Moments of each group's tile: ``(means, sums, size)`` of the centred vectors and of the pairs, ``[GROUPS, 1, 1]``
    each; ``size`` counts the elements that a mask leaves in.

    The order: a lane's elements, one repeat after the other and then neighbours in the vector; then lanes, as a tree
    from the lowest bit. It follows from the tile's size alone.
    """
    first = ()
    pivots = ()
    if len(SPEC.centred) > 0:
        first = _first_elements(predictions, strides, at, tile, count, inner, live, space, SPEC)
        pivots = _pivots(blocks, insides, space, SPEC)
    shifts, sums = _lane_sums(blocks, insides, pivots, space, SPEC)
    counts = ()
    size = tile_size(count, tl.zeros((1, 1, 1), tl.int64) + tile, SPEC.tile)
    if len(SPEC.centred) > 0 or SPEC.mask > 0:
        counts = _lane_counts(blocks, insides, tile, count, SPEC)
        shifts, sums = _centre(shifts, sums, pivots, first, counts, SPEC)

    if SPEC.lanes > _WARP and not SPEC.full:
        # Where loads are no vectors, lanes are no threads: sums across them would each wait for all warps.
        shifts, sums, counts = _usual(shifts, sums, counts, SPEC.lanes, SPEC)
    # Within warps, then across them.
    near: tl.constexpr = min(log2(SPEC.lanes), log2(_WARP))
    each: tl.constexpr = SPEC.repeats * SPEC.vector
    shifts, sums, counts = merge_lanes(shifts, sums, counts, each, SPEC.lanes, near, SPEC)
    if SPEC.lanes > _WARP:
        warps: tl.constexpr = SPEC.lanes // _WARP
        shifts, sums, counts = _usual(shifts, sums, counts, warps, SPEC)
        shifts, sums, counts = merge_lanes(shifts, sums, counts, each * _WARP, warps, log2(warps), SPEC)
    if SPEC.mask > 0:
        size = as_group(counts[0], SPEC.groups)
    means = ()
    for i in tl.static_range(len(SPEC.centred)):
        mean = as_group(shifts[i], SPEC.groups) / tl.maximum(size, 1).to(SPEC.acc)
        means = means + (mean + first[i],)
    of_pairs = ()
    for i in tl.static_range(len(SPEC.pairs)):
        of_pairs = of_pairs + (as_group(sums[i], SPEC.groups),)
    return means, of_pairs, size
