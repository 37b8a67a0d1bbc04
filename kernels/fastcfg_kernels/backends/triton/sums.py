"""Device functions that add in one fixed order, whatever layout the compiler chose.

``tl.sum`` over a long axis adds in an order that follows from the layout, and so from alignment, dtype and warps. Over
an axis of two there is one order: addition commutes. So every sum across threads is a binary tree over the bits of the
index, lowest bit first, a ``tl.sum`` over two for each bit. Where the lanes of a tile are the threads of a program, as
they are where its loads are vectors, a bit of the lane within its warp costs a shuffle and nothing else; what is left
then, one number a warp, is handed to all warps at once (:func:`usual_layout`), and the last bits are shuffles again.
"""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

__all__ = ["WARP", "add_lanes", "add_vector", "as_group", "fixed", "inverse", "log2", "merge_lanes", "usual_layout"]

WARP = 32
"""Lanes that are added before warps hand their sums to each other."""

_WARP = tl.constexpr(WARP)


@triton.constexpr_function
def fixed(number):
    """A field of a Spec as a compile-time value, which Triton 3.6 takes for a number of the kernel's in a range."""
    return number


@triton.constexpr_function
def log2(count):
    """The logarithm of a power of two."""
    return count.bit_length() - 1


@triton.jit
def add_vector(x, groups: tl.constexpr, lanes: tl.constexpr, vector: tl.constexpr):
    """``[groups, lanes, vector]`` summed over the vector, neighbours first: ``[groups, lanes]``."""
    for level in tl.static_range(log2(vector)):
        halves = tl.reshape(x, (groups, lanes, vector // 2 ** (level + 1), 2))  # [groups, lanes, half as many, 2]
        x = tl.sum(halves, axis=3)  # [groups, lanes, half as many]
    return tl.reshape(x, (groups, lanes))


@triton.jit
def _in_pairs(x, groups: tl.constexpr, half: tl.constexpr):
    """``[groups, 2 * half]`` as ``[groups, half, 2]``."""
    return tl.reshape(x, (groups, half, 2))


@triton.jit
def add_lanes(x, levels: tl.constexpr):
    """``[2**levels]`` numbers of one warp summed, the lowest bit of the lane first: a scalar.

    Each lane takes its partner's sum, so that all of them end with the same, and no layout changes on the way.
    """
    lane = tl.arange(0, 2**levels)  # [LANES]
    for level in tl.static_range(levels):
        x = x + tl.gather(x, lane ^ (2**level), 0)  # [LANES]
    return tl.sum(tl.gather(x, tl.zeros((1,), tl.int32), 0), axis=0)


@triton.jit
def inverse(count):
    """``1 / max(count, 1)``, rounded once: the same in every layout, and exact for a power of two."""
    one = tl.full(count.shape, 1.0, count.dtype)
    if count.dtype == tl.float32:
        return tl.math.div_rn(one, tl.maximum(count, 1.0))
    else:
        return one / tl.maximum(count, 1.0)


@triton.jit
def merge_lanes(
    shifts, sums, counts, each: tl.constexpr, lanes: tl.constexpr, levels: tl.constexpr, SPEC: tl.constexpr
):  # fmt: skip
    """Merge the moments of neighbouring lanes, the lowest bits of the lane: ``[groups, lanes / 2**levels]`` each.

    Two parts of a whole have ``M + sum n (m - mean)(m' - mean')`` as their centred sum, m being a part's mean and
    ``mean`` the whole's: nothing is subtracted that is as large as the sums of squares themselves.

    Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, eq. 2.1.

    Args:
        shifts: sums of the centred vectors less a pivot; sums: of the pairs, centred ones at the lane's own mean.
        counts: elements of each lane, one block ``[groups, lanes]``, or none where every lane has ``each``, a power of
            two: products with it are exact, so that both ways give the same bits.
    """
    for level in tl.static_range(levels):
        totals = ()
        if len(counts) > 0:
            number = _in_pairs(counts[0], SPEC.groups, lanes // 2 ** (level + 1))  # [groups, half, 2]
            total = tl.sum(number, axis=2)  # [groups, half]
            totals = totals + (total,)
            if len(shifts) > 0:
                of_one = inverse(number)  # [groups, half, 2]
                of_both = inverse(total)  # [groups, half]
        else:
            number = each * 2.0**level
            of_one = 1.0 / (each * 2.0**level)
            of_both = 0.5 / (each * 2.0**level)
        merged = ()
        apart = ()
        weighted = ()
        for i in tl.static_range(len(shifts)):
            own = _in_pairs(shifts[i], SPEC.groups, lanes // 2 ** (level + 1))  # [groups, half, 2]
            both = tl.sum(own, axis=2)  # [groups, half]
            merged = merged + (both,)
            difference = tl.fma(own, of_one, -tl.expand_dims(both * of_both, 2))  # [groups, half, 2]
            apart = apart + (difference,)
            weighted = weighted + (difference * number,)
        added = ()
        for i in tl.static_range(len(SPEC.pairs)):
            own = _in_pairs(sums[i], SPEC.groups, lanes // 2 ** (level + 1))  # [groups, half, 2]
            if SPEC.pairs[i][0]:
                own = tl.fma(weighted[SPEC.pairs[i][1]], apart[SPEC.pairs[i][2]], own)
            added = added + (tl.sum(own, axis=2),)  # [groups, half]
        shifts = merged
        sums = added
        counts = totals
    return shifts, sums, counts


@triton.jit
def _word(x):
    """The bits of float32 numbers in the low half of 64."""
    return x.to(tl.uint32, bitcast=True).to(tl.uint64)


@triton.jit
def usual_layout(values, groups: tl.constexpr, lanes: tl.constexpr):
    """Blocks ``[groups, lanes]`` in the compiler's usual layout: a lane a thread, and copies in the other warps where
    there are fewer.

    A gather's result has the layout of its index, which is fresh here. It goes through shared memory, where each gather
    waits twice for all warps: two float32 numbers go in one word.
    """
    index = tl.zeros((groups, lanes), tl.int32) + tl.arange(0, lanes)[None, :]  # [groups, lanes]
    packed: tl.constexpr = values[0].dtype == tl.float32
    found = ()
    if packed:
        for i in tl.static_range(len(values) // 2):
            word = tl.gather(_word(values[2 * i]) | (_word(values[2 * i + 1]) << 32), index, 1)  # [groups, lanes]
            low = word.to(tl.uint32).to(tl.float32, bitcast=True)
            high = (word >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
            found = found + (low, high)
        if len(values) % 2 == 1:
            found = found + (tl.gather(values[len(values) - 1], index, 1),)
    else:
        for i in tl.static_range(len(values)):
            found = found + (tl.gather(values[i], index, 1),)
    return found


@triton.jit
def as_group(x, groups: tl.constexpr):
    """``[groups, 1]`` as ``[groups, 1, 1]``, without the layout that it got on the way, which would spread to whole
    blocks that it meets."""
    if groups == 1:
        return tl.full((1, 1, 1), tl.sum(tl.reshape(x, (1,)), axis=0), x.dtype)
    else:
        return tl.reshape(x, (groups,))[:, None, None]
