"""Device functions of the reduce stage: what a tile loads, its fixed vectors, its partial sums."""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

__all__ = ["first_elements", "fixed_vectors", "load_sample", "load_tile", "tile_sums"]


@triton.jit
def load_tile(predictions, rows, start, count, TILE: tl.constexpr):
    """Predictions' elements ``start … start+TILE``, in their own dtype; zero beyond ``count``."""
    offsets = start + tl.arange(0, TILE).to(tl.int64)
    raw = ()
    for k in tl.static_range(len(predictions)):
        raw = raw + (tl.load(predictions[k] + rows[k] + offsets, mask=offsets < count, other=0.0),)
    return raw


@triton.jit
def fixed_vectors(raw, space, SIZE: tl.constexpr, ACC: tl.constexpr):
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
def load_params(params, b, STRIDES: tl.constexpr, ACC: tl.constexpr):
    """A sample's parameters in ``ACC``: numbers as they are, tensors loaded."""
    values = ()
    for i in tl.static_range(len(params)):
        if STRIDES[i] < 0:
            values = values + (tl.full((), params[i], ACC),)
        else:
            values = values + (tl.load(params[i] + b * STRIDES[i]).to(ACC),)
    return values


@triton.jit
def affine_space(values, AFFINE: tl.constexpr):
    """``(shift, gain)``, the last two parameters of an affine program, or nothing."""
    if AFFINE:
        return (values[len(values) - 2], values[len(values) - 1])
    else:
        return ()


@triton.jit
def load_sample(predictions, params, strides, b, STRIDES: tl.constexpr, AFFINE: tl.constexpr, ACC: tl.constexpr):
    """What every kernel begins with: offsets of sample ``b`` in each input, its parameters, its affine space."""
    rows = ()
    for k in tl.static_range(len(predictions)):
        rows = rows + (b * strides[k],)
    values = load_params(params, b, STRIDES, ACC)
    return rows, values, affine_space(values, AFFINE)


@triton.jit
def first_elements(predictions, rows, start, space, SIZE: tl.constexpr, ACC: tl.constexpr):
    """The fixed vectors' first element of a tile: the pivot that the tile's mean is taken from."""
    raw = ()
    for k in tl.static_range(len(predictions)):
        raw = raw + (tl.load(predictions[k] + rows[k] + start),)
    return fixed_vectors(raw, space, SIZE, ACC)


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
    vectors = fixed_vectors(raw, space, SIZE, ACC)
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
