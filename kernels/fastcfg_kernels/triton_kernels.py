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

__all__ = ["MERGE", "apply_kernel", "row_kernel", "tile_kernel"]

MERGE = 128
"""Lanes over which the partial sums of tiles are merged: tile ``t`` belongs to lane ``t % MERGE``."""

_MERGE = tl.constexpr(MERGE)


@triton.jit
def _load(predictions, rows, start, count, TILE: tl.constexpr):
    """Predictions' elements ``start … start+TILE``, in their own dtype; zero beyond ``count``."""
    offsets = start + tl.arange(0, TILE).to(tl.int64)
    raw = ()
    for k in tl.static_range(len(predictions)):
        raw = raw + (tl.load(predictions[k] + rows[k] + offsets, mask=offsets < count, other=0.0),)
    return raw


@triton.jit
def _vectors(raw, space, SIZE: tl.constexpr, ACC: tl.constexpr):
    """The fixed vectors in ``ACC``: the difference basis of ``SIZE`` predictions, the extras, the predictions again.

    ``space`` is ``(shift, gain)``, the formulas working on ``shift * x + gain * prediction`` with x the last of
    ``raw``; or it is empty.
    """
    base = raw[0].to(ACC)
    out = ()
    for k in tl.static_range(1, SIZE):
        out = out + (raw[k].to(ACC) - base,)
    predictions = ()
    for k in tl.static_range(1, SIZE):
        predictions = predictions + (raw[k].to(ACC),)
    if len(space) == 2:
        offset = space[0] * raw[len(raw) - 1].to(ACC)
        scaled = (offset + space[1] * base,)
        for k in tl.static_range(SIZE - 1):
            scaled = scaled + (space[1] * out[k],)
        for k in tl.static_range(SIZE, len(raw) - 1):
            scaled = scaled + (raw[k].to(ACC),)
        for k in tl.static_range(SIZE - 1):
            scaled = scaled + (offset + space[1] * predictions[k],)
        return scaled
    else:
        plain = (base,) + out
        for k in tl.static_range(SIZE, len(raw)):
            plain = plain + (raw[k].to(ACC),)
        return plain + predictions


@triton.jit
def _values(params, b, STRIDES: tl.constexpr, ACC: tl.constexpr):
    """A sample's parameters in ``ACC``: numbers as they are, tensors loaded."""
    values = ()
    for i in tl.static_range(len(params)):
        if STRIDES[i] < 0:
            values = values + (tl.full((), params[i], ACC),)
        else:
            values = values + (tl.load(params[i] + b * STRIDES[i]).to(ACC),)
    return values


@triton.jit
def _space(values, AFFINE: tl.constexpr):
    """``(shift, gain)``, the last two parameters of an affine program, or nothing."""
    if AFFINE:
        return (values[len(values) - 2], values[len(values) - 1])
    else:
        return ()


@triton.jit
def _first(predictions, rows, start, space, SIZE: tl.constexpr, ACC: tl.constexpr):
    """The fixed vectors' first element of a tile: the pivot that the tile's mean is taken from."""
    raw = ()
    for k in tl.static_range(len(predictions)):
        raw = raw + (tl.load(predictions[k] + rows[k] + start),)
    return _vectors(raw, space, SIZE, ACC)


@triton.jit
def tile_sums(
    raw,
    first,
    size,
    space,
    PAIRS: tl.constexpr,
    CENTRED: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ACC: tl.constexpr,
):
    """Partial sums of one tile: the means of the centred vectors, then the pairs' sums.

    Args:
        raw: K blocks ``[TILE]``, zero beyond ``size``.
        first: the fixed vectors' first elements.
        size: elements of this tile (the last one may be partial).
        PAIRS: ``((centred, a, b), …)``; CENTRED: the vectors that need a mean.
    """
    inside = tl.arange(0, TILE) < size
    vectors = _vectors(raw, space, SIZE, ACC)
    means = ()
    centred = ()
    for i in tl.static_range(len(CENTRED)):
        shifted = tl.where(inside, vectors[CENTRED[i]] - first[CENTRED[i]], 0.0)
        mean = tl.sum(shifted, axis=0) / size.to(ACC)
        centred = centred + (tl.where(inside, shifted - mean, 0.0),)
        means = means + (mean + first[CENTRED[i]],)
    sums = ()
    for i in tl.static_range(len(PAIRS)):
        if PAIRS[i][0]:
            product = centred[PAIRS[i][1]] * centred[PAIRS[i][2]]
        else:
            product = vectors[PAIRS[i][1]] * vectors[PAIRS[i][2]]
        sums = sums + (tl.sum(product, axis=0),)
    return means + sums


@triton.jit
def _weigh(means, sums, count, values, WEIGH: tl.constexpr, MEANS: tl.constexpr, ACC: tl.constexpr):
    """Weights from merged sums and the sample's parameters: calls the generated formula."""
    gram = sums
    for i in tl.static_range(len(MEANS)):
        gram = gram + (means[MEANS[i]],)
    return WEIGH(gram, count.to(ACC), values)


@triton.jit
def _combine(
    raw, weights, space, OUTPUT: tl.constexpr, OUTPUTS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    CLAMP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``sum_k w_k b_k`` over the difference basis and the extras for one output; the first one is clamped."""
    vectors = _vectors(raw, space, SIZE, ACC)
    result = vectors[WIDTH - 1] * weights[OUTPUT * WIDTH + WIDTH - 1]
    for k in tl.static_range(1, WIDTH):
        result = vectors[WIDTH - 1 - k] * weights[OUTPUT * WIDTH + WIDTH - 1 - k] + result
    if CLAMP and OUTPUT == 0:
        result = tl.minimum(result, tl.full((), weights[OUTPUTS * WIDTH + 1], ACC), propagate_nan=tl.PropagateNan.ALL)
        result = tl.maximum(result, tl.full((), weights[OUTPUTS * WIDTH], ACC), propagate_nan=tl.PropagateNan.ALL)
    if len(space) == 2 and OUTPUT == 0:
        result = (result - space[0] * raw[len(raw) - 1].to(ACC)) / space[1]
    return result


@triton.jit
def _store(
    outs, b, out_strides, offsets, count, raw, weights, space, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    CLAMP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every output of one tile. All are worked out from the inputs before any is stored, which it may overwrite."""
    results = ()
    for o in tl.static_range(len(outs)):
        results = results + (_combine(raw, weights, space, o, len(outs), SIZE, WIDTH, CLAMP, ACC),)
    for o in tl.static_range(len(outs)):
        pointer = outs[o] + b * out_strides[o] + offsets
        tl.store(pointer, results[o].to(outs[o].dtype.element_ty), mask=offsets < count)


@triton.jit
def row_kernel(
    predictions,
    outs,
    params,
    strides,
    out_strides,
    count,
    WEIGH: tl.constexpr,
    PAIRS: tl.constexpr,
    CENTRED: tl.constexpr,
    MEANS: tl.constexpr,
    STRIDES: tl.constexpr,
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
        predictions: K + E pointers, the extras last; sample ``b`` of ``k`` starts at ``b * strides[k]``, contiguous.
        outs: pointers, sample ``b`` of ``o`` at ``b * out_strides[o]``. Each may be one of the inputs.
        params: numbers (``STRIDES[i] < 0``) or pointers to ``[B]`` (stride 1) or 0-dim (stride 0) tensors.
        count: elements of a sample.
    """
    b = tl.program_id(0).to(tl.int64)
    rows = ()
    for k in tl.static_range(len(predictions)):
        rows = rows + (b * strides[k],)
    values = _values(params, b, STRIDES, ACC)
    space = _space(values, AFFINE)
    blocks = ()
    for t in tl.static_range(TILES):
        blocks = blocks + (_load(predictions, rows, t * TILE, count, TILE),)

    lane = tl.arange(0, _MERGE)
    slots: tl.constexpr = len(CENTRED) + len(PAIRS)
    lanes = ()
    for _ in tl.static_range(slots):
        lanes = lanes + (tl.zeros((_MERGE,), ACC),)
    for t in tl.static_range(TILES):
        size = tl.minimum(count - t * TILE, TILE)
        first = _first(predictions, rows, t * TILE, space, SIZE, ACC)
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

    weights = _weigh(means, sums, count, values, WEIGH, MEANS, ACC)
    for t in tl.static_range(TILES):
        offsets = t * TILE + tl.arange(0, TILE).to(tl.int64)
        _store(outs, b, out_strides, offsets, count, blocks[t], weights, space, SIZE, WIDTH, CLAMP, ACC)


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
    rows = ()
    for k in tl.static_range(len(predictions)):
        rows = rows + (b * strides[k],)
    values = _values(params, b, STRIDES, ACC)
    space = _space(values, AFFINE)
    raw = _load(predictions, rows, start, count, TILE)
    size = tl.minimum(count - start, TILE)
    partial = tile_sums(
        raw, _first(predictions, rows, start, space, SIZE, ACC), size, space, PAIRS, CENTRED, SIZE, TILE, ACC
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
    params,
    workspace,
    strides,
    out_strides,
    count,
    tiles,
    WEIGH: tl.constexpr,
    PAIRS: tl.constexpr,
    CENTRED: tl.constexpr,
    MEANS: tl.constexpr,
    STRIDES: tl.constexpr,
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
    rows = ()
    for k in tl.static_range(len(predictions)):
        rows = rows + (b * strides[k],)
    values = _values(params, b, STRIDES, ACC)
    space = _space(values, AFFINE)

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

    weights = _weigh(means, sums, count, values, WEIGH, MEANS, ACC)
    start = t.to(tl.int64) * TILE
    raw = _load(predictions, rows, start, count, TILE)
    offsets = start + tl.arange(0, TILE).to(tl.int64)
    _store(outs, b, out_strides, offsets, count, raw, weights, space, SIZE, WIDTH, CLAMP, ACC)
