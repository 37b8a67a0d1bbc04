"""Device functions that add in one fixed order, whatever layout the compiler chose.

``tl.sum`` over a long axis adds in an order that follows from the layout, and so from alignment, dtype and warps. Over
an axis of two there is one order: addition commutes. A sum here is a binary tree over the bits of the index, one
``tl.sum`` over two for each bit; the bits come in an order in which the first few are a thread's own elements.
"""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

__all__ = ["add_lanes", "add_values", "finish_sums", "partial_sum"]


@triton.jit
def _halve(x, ROWS: tl.constexpr, HIGH: tl.constexpr, LOW: tl.constexpr):
    """``[ROWS, HIGH * 2 * LOW]`` summed over the middle bit."""
    return tl.reshape(tl.sum(tl.reshape(x, (ROWS, HIGH, 2, LOW)), axis=2), (ROWS, HIGH * LOW))


@triton.jit
def partial_sum(x, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The tree's first levels, bits 0, 1, 2 and 11 of the column: ``[ROWS, COLS]`` to ``[ROWS, columns left]``.

    A thread holds those bits itself where it loads 128-bit vectors. ``COLS`` is a power of two up to 4,096.
    """
    tl.static_assert(COLS <= 4096, "a tile has at most 4096 columns")
    if COLS >= 2:
        x = _halve(x, ROWS, COLS // 2, 1)
    if COLS >= 4:
        x = _halve(x, ROWS, COLS // 4, 1)
    if COLS >= 8:
        x = _halve(x, ROWS, COLS // 8, 1)
    if COLS == 4096:
        x = _halve(x, ROWS, 1, 256)
    return x


@triton.constexpr_function
def _log2(count):
    """The smallest k with ``2**k >= count``."""
    return (count - 1).bit_length()


@triton.jit
def _stack(parts, LEVELS: tl.constexpr):
    """Blocks ``[ROWS, N]``, at most ``2**LEVELS``, as one ``[ROWS, N, 2, 2, …]``, zeros for those that lack."""
    stacked = parts
    for _ in tl.static_range(2**LEVELS - len(parts)):
        stacked = stacked + (tl.zeros_like(parts[0]),)
    for _ in tl.static_range(LEVELS):
        joined = ()
        for i in tl.static_range(len(stacked) // 2):
            joined = joined + (tl.join(stacked[i], stacked[i + len(stacked) // 2]),)
        stacked = joined
    return stacked[0]


@triton.jit
def _free(x, ROWS: tl.constexpr):
    """``[ROWS, 1]`` without the layout that it got on the way, which would spread to whole tiles that it meets."""
    if ROWS == 1:
        return tl.full((1, 1), tl.sum(tl.reshape(x, (1,)), axis=0), x.dtype)
    else:
        return tl.reshape(x, (ROWS,))[:, None]


@triton.jit
def _unstack(x, ROWS: tl.constexpr, LEVELS: tl.constexpr, COUNT: tl.constexpr):
    """The first ``COUNT`` columns of ``[ROWS, 2**LEVELS]`` as ``[ROWS, 1]`` each: what :func:`_stack` added is gone."""
    parts = (x,)
    for level in tl.static_range(LEVELS):
        even = ()
        odd = ()
        for i in tl.static_range(len(parts)):
            low, high = tl.split(tl.reshape(parts[i], (ROWS, 2 ** (LEVELS - 1 - level), 2)))
            even = even + (low,)
            odd = odd + (high,)
        parts = even + odd
    columns = ()
    for i in tl.static_range(COUNT):
        columns = columns + (_free(parts[i], ROWS),)
    return columns


@triton.jit
def finish_sums(parts, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The tree's other levels, bit 10 and then 3 to 9, for results of :func:`partial_sum`: ``[ROWS, 1]`` each.

    All parts go through the levels together, so that warps meet once a level and not once a level and part.
    """
    LEVELS: tl.constexpr = _log2(len(parts))
    PARTS: tl.constexpr = 2**LEVELS
    LEFT: tl.constexpr = 256 if COLS == 4096 else (COLS // 8 if COLS > 8 else 1)
    x = tl.reshape(_stack(parts, LEVELS), (ROWS, LEFT * PARTS))
    if LEFT == 256:
        x = _halve(x, ROWS, 1, 128 * PARTS)
    for level in tl.static_range(7):
        if 2 ** (level + 1) <= LEFT:
            x = _halve(x, ROWS, (128 if LEFT == 256 else LEFT) // 2 ** (level + 1), PARTS)
    return _unstack(x, ROWS, LEVELS, len(parts))


@triton.jit
def add_lanes(parts, LANES: tl.constexpr):
    """Sums of blocks ``[1, LANES]``, neighbours first: ``[1, 1]`` each. Zeros at the end change nothing."""
    LEVELS: tl.constexpr = _log2(len(parts))
    PARTS: tl.constexpr = 2**LEVELS
    x = tl.reshape(_stack(parts, LEVELS), (1, LANES * PARTS))
    for level in tl.static_range(12):
        if 2 ** (level + 1) <= LANES:
            x = _halve(x, 1, LANES // 2 ** (level + 1), PARTS)
    return _unstack(x, 1, LEVELS, len(parts))


@triton.jit
def add_values(values):
    """:func:`add_lanes` of lanes that are a block each: the sum of a tuple, neighbours first."""
    LEVELS: tl.constexpr = _log2(len(values))
    for _ in tl.static_range(LEVELS):
        halved = ()
        for i in tl.static_range((len(values) + 1) // 2):
            if 2 * i + 1 < len(values):
                halved = halved + (values[2 * i] + values[2 * i + 1],)
            else:
                halved = halved + (values[2 * i],)
        values = halved
    return values[0]
