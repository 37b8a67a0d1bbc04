"""Device functions of the weigh and combine stages: weights from merged sums, outputs from weights."""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

from .tiles import fixed_vectors, load_tile, offset

__all__ = ["store_stats", "store_tile", "weigh"]


@triton.jit
def weigh(means, sums, count, values, WEIGH: tl.constexpr, MEANS: tl.constexpr, ACC: tl.constexpr):
    """Weights from merged sums and the sample's parameters: calls the generated formula."""
    gram = sums
    for i in tl.static_range(len(MEANS)):
        gram = gram + (means[MEANS[i]],)
    return WEIGH(gram, count.to(ACC), values)


@triton.jit
def store_stats(stats, weights, group, live, STATS: tl.constexpr, ACC: tl.constexpr):
    """Write the stats of each group, ``[groups, STATS]``: the last of the weights."""
    for k in tl.static_range(STATS):
        value = tl.zeros(group.shape, ACC) + weights[len(weights) - STATS + k]
        tl.store(stats + group * STATS + k, value.to(stats.dtype.element_ty), mask=live)


@triton.jit
def combine(
    raw, weights, space, OUTPUT: tl.constexpr, OUTPUTS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    FACTOR: tl.constexpr, CLAMP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``sum_k w_k b_k`` over the difference basis and the extras for one output; the first one is clamped."""
    vectors = fixed_vectors(raw, space, SIZE, WIDTH, FACTOR, ACC)
    result = vectors[WIDTH - 1] * weights[OUTPUT * WIDTH + WIDTH - 1]
    for k in tl.static_range(1, WIDTH):
        result = tl.fma(vectors[WIDTH - 1 - k], weights[OUTPUT * WIDTH + WIDTH - 1 - k], result)
    if CLAMP and OUTPUT == 0:
        high = tl.zeros((1, 1), ACC) + weights[OUTPUTS * WIDTH + 1]
        low = tl.zeros((1, 1), ACC) + weights[OUTPUTS * WIDTH]
        result = tl.minimum(result, high, propagate_nan=tl.PropagateNan.ALL)
        result = tl.maximum(result, low, propagate_nan=tl.PropagateNan.ALL)
    if len(space) == 2 and OUTPUT == 0:
        result = (result - space[0] * raw[WIDTH].to(ACC)) / space[1]
    return result


@triton.jit
def step_row(guided, reads, weights, START: tl.constexpr, ACC: tl.constexpr):
    """One output of a step: weights of the guided prediction and of the blocks that the step reads."""
    result = guided * weights[START]
    for k in tl.static_range(len(reads)):
        result = tl.fma(reads[k].to(ACC), weights[START + 1 + k], result)
    return result


@triton.jit
def store_tile(
    outs, out_strides, tail, tail_strides, place, inside, raw, weights, space, RESULTS: tl.constexpr,
    OUTPUTS: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, FACTOR: tl.constexpr,
    CLAMP: tl.constexpr, WHOLE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every output of one tile. All are worked out from the inputs before any is stored, which it may overwrite.

    Args:
        raw: blocks of the predictions, the vectors among the extras, ``x`` of an affine program, elementwise inputs.
        tail: pointers to the rest of what a step reads: no sum needs it, so that it is loaded here.
        place: digits of the groups and elements; inside: which there are.
        RESULTS: the result that each of ``outs`` receives, counted from the step's rows or the guided prediction on.
        STEP: the step's rows.
    """
    guided = combine(raw, weights, space, 0, OUTPUTS, SIZE, WIDTH, FACTOR, CLAMP, ACC)
    results = ()
    if STEP > 0:
        reads = ()
        if len(space) == 2:
            reads = (raw[WIDTH],)
        reads = reads + load_tile(tail, tail_strides, place, inside, WHOLE)
        for r in tl.static_range(STEP):
            results = results + (
                step_row(guided, reads, weights, OUTPUTS * WIDTH + 2 * CLAMP + r * (1 + len(reads)), ACC),
            )
    else:
        results = results + (guided,)
    for o in tl.static_range(1, OUTPUTS):
        results = results + (combine(raw, weights, space, o, OUTPUTS, SIZE, WIDTH, FACTOR, CLAMP, ACC),)
    for o in tl.static_range(len(outs)):
        pointer = outs[o] + offset(place, out_strides, o)
        result = results[RESULTS[o]]
        if outs[o].dtype.element_ty != tl.float64 and result.dtype == tl.float64:
            result = result.to(tl.float32)  # No direct conversion to the half types on every target.
        if WHOLE:
            tl.store(pointer, result.to(outs[o].dtype.element_ty))
        else:
            tl.store(pointer, result.to(outs[o].dtype.element_ty), mask=inside)
