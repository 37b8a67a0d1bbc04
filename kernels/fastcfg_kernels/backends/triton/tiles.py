"""Device functions of the reduce stage: where elements are, what a tile loads, its partial sums.

Blocks are ``[GROUPS, TILE]``: the groups that a program handles together, and elements of each. What there is one of in
a group is ``[GROUPS, 1]``.
"""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

from .sums import finish_sums, partial_sum

__all__ = [
    "affine_space",
    "as_number",
    "digits",
    "first_elements",
    "fixed_vectors",
    "load_parameters",
    "load_tile",
    "offset",
    "tile_size",
    "tile_sums",
]


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
def load_tile(pointers, strides, place, inside, WHOLE: tl.constexpr):
    """Blocks at ``place`` of every tensor, in their own dtype; zero where not ``inside``."""
    raw = ()
    for k in tl.static_range(len(pointers)):
        if WHOLE:
            raw = raw + (tl.load(pointers[k] + offset(place, strides, k)),)
        else:
            raw = raw + (tl.load(pointers[k] + offset(place, strides, k), mask=inside, other=0.0),)
    return raw


@triton.jit
def fixed_vectors(raw, space, SIZE: tl.constexpr, WIDTH: tl.constexpr, FACTOR: tl.constexpr, ACC: tl.constexpr):
    """The fixed vectors in ``ACC``: the difference basis of ``SIZE`` predictions, the extras, the predictions again.

    ``space`` is ``(shift, gain)``, the formulas working on ``shift * x + gain * prediction`` with x after the ``WIDTH``
    vectors of ``raw``; or it is empty. Deltas are multiplied by ``raw[FACTOR]`` where that is not 0.
    """
    base = raw[0].to(ACC)
    out = ()
    for k in tl.static_range(1, SIZE):
        if FACTOR > 0:
            out = out + ((raw[k].to(ACC) - base) * raw[FACTOR].to(ACC),)
        else:
            out = out + (raw[k].to(ACC) - base,)
    predictions = ()
    for k in tl.static_range(1, SIZE):
        predictions = predictions + (raw[k].to(ACC),)
    if len(space) == 2:
        offset = space[0] * raw[WIDTH].to(ACC)
        scaled = (offset + space[1] * base,)
        for k in tl.static_range(SIZE - 1):
            scaled = scaled + (space[1] * out[k],)
        for k in tl.static_range(SIZE, WIDTH):
            scaled = scaled + (raw[k].to(ACC),)
        for k in tl.static_range(SIZE - 1):
            scaled = scaled + (offset + space[1] * predictions[k],)
        return scaled
    else:
        plain = (base,) + out
        for k in tl.static_range(SIZE, WIDTH):
            plain = plain + (raw[k].to(ACC),)
        return plain + predictions


@triton.jit
def load_parameters(parameters, group, per_sample, live, PARAMS: tl.constexpr, ACC: tl.constexpr):
    """The groups' parameters in ``ACC``, ``[GROUPS, 1]``.

    Args:
        PARAMS: for each of ``parameters`` whether it is a number (-1), or a tensor: 0-dim (0), with a value for a
            sample (1), which is ``per_sample`` groups, or for a group (2).
    """
    values = ()
    for i in tl.static_range(len(parameters)):
        if PARAMS[i] == -1:
            values = values + (tl.full((1, 1), parameters[i], ACC),)
        elif PARAMS[i] == 0:
            values = values + (tl.load(parameters[i] + tl.zeros((1, 1), tl.int32)).to(ACC),)
        elif PARAMS[i] == 1:
            values = values + (tl.load(parameters[i] + group // per_sample, mask=live, other=0.0).to(ACC),)
        else:
            values = values + (tl.load(parameters[i] + group, mask=live, other=0.0).to(ACC),)
    return values


@triton.jit
def affine_space(values, AFFINE: tl.constexpr):
    """``(shift, gain)``, the last two parameters of an affine program, or nothing."""
    if AFFINE:
        return (values[len(values) - 2], values[len(values) - 1])
    else:
        return ()


@triton.jit
def first_elements(
    pointers, strides, place, live, space, SIZE: tl.constexpr, WIDTH: tl.constexpr, FACTOR: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The fixed vectors' first element of a tile: the pivot that the tile's mean is taken from."""
    return fixed_vectors(load_tile(pointers, strides, place, live, False), space, SIZE, WIDTH, FACTOR, ACC)


@triton.jit
def tile_size(count, t, TILE: tl.constexpr):
    """Elements of tile ``t``: the last one may be partial, and there is none beyond it."""
    return tl.minimum(tl.maximum(count - t.to(tl.int64) * TILE, 0), TILE)


@triton.jit
def tile_sums(
    raw, first, inside, size, space, PAIRS: tl.constexpr, CENTRED: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr, FACTOR: tl.constexpr, MASK: tl.constexpr, GROUPS: tl.constexpr, TILE: tl.constexpr,
    WHOLE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partial sums of one tile: ``(means, sums)`` of the centred vectors and of the pairs, ``[GROUPS, 1]`` each.

    Args:
        raw: blocks, zero where there are no elements; inside: the elements that are summed, fewer with a ``MASK``.
        first: the fixed vectors' first elements; size: how many elements are summed.
        PAIRS: ``((centred, a, b), …)``; CENTRED: the vectors that need a mean.
    """
    vectors = fixed_vectors(raw, space, SIZE, WIDTH, FACTOR, ACC)
    means = ()
    centred = ()
    if len(CENTRED) > 0:
        shifted = ()
        parts = ()
        for i in tl.static_range(len(CENTRED)):
            shift = vectors[CENTRED[i]] - first[CENTRED[i]]
            if MASK > 0 or not WHOLE:
                shift = tl.where(inside, shift, 0.0)
            shifted = shifted + (shift,)
            parts = parts + (partial_sum(shift, GROUPS, TILE),)
        totals = finish_sums(parts, GROUPS, TILE)
        for i in tl.static_range(len(CENTRED)):
            spread = totals[i] / tl.maximum(size, 1).to(ACC)
            means = means + (spread + first[CENTRED[i]],)
            if MASK > 0 or not WHOLE:
                centred = centred + (tl.where(inside, shifted[i] - spread, 0.0),)
            else:
                centred = centred + (shifted[i] - spread,)
    sums = ()
    if len(PAIRS) > 0:
        parts = ()
        for i in tl.static_range(len(PAIRS)):
            if PAIRS[i][0]:
                product = centred[PAIRS[i][1]] * centred[PAIRS[i][2]]
            else:
                product = vectors[PAIRS[i][1]] * vectors[PAIRS[i][2]]
                if MASK > 0:
                    product = tl.where(inside, product, 0.0)
            parts = parts + (partial_sum(product, GROUPS, TILE),)
        sums = finish_sums(parts, GROUPS, TILE)
    return means, sums
