"""Device functions of the weigh and combine stages: weights from merged sums, outputs from weights."""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

from .sums import fixed
from .tiles import fixed_vectors, load_block, offset

__all__ = ["store_block", "store_stats", "weigh"]


@triton.jit
def weigh(means, sums, count, values, WEIGH: tl.constexpr, SPEC: tl.constexpr):
    """Weights from merged sums and the sample's parameters: calls the generated formula.

    Args:
        means, sums, values: ``[GROUPS, 1, 1]`` each; count: of the elements summed.
    """
    gram = sums
    for i in tl.static_range(len(SPEC.means)):
        gram = gram + (means[SPEC.means[i]],)
    return WEIGH(gram, count.to(SPEC.acc), values)


@triton.jit
def store_stats(stats, weights, group, live, SPEC: tl.constexpr):
    """Write the stats of each group, ``[groups, STATS]``: the last of the weights."""
    for k in tl.static_range(fixed(SPEC.stats)):
        value = tl.zeros(group.shape, SPEC.acc) + weights[len(weights) - SPEC.stats + k]  # [GROUPS, 1, 1]
        tl.store(stats + group * SPEC.stats + k, value.to(stats.dtype.element_ty), mask=live)


@triton.jit
def combine(raw, weights, space, OUTPUT: tl.constexpr, SPEC: tl.constexpr):
    """``sum_k w_k b_k`` over the difference basis and the extras for one output; the first one is clamped."""
    vectors = fixed_vectors(raw, space, SPEC)  # [GROUPS, LANES, VECTOR] each
    last: tl.constexpr = SPEC.width - 1
    result = vectors[last] * weights[OUTPUT * SPEC.width + last]
    for k in tl.static_range(1, fixed(SPEC.width)):
        result = tl.fma(vectors[last - k], weights[OUTPUT * SPEC.width + last - k], result)
    if SPEC.clamps and OUTPUT == 0:
        high = tl.zeros((1, 1, 1), SPEC.acc) + weights[SPEC.outputs * SPEC.width + 1]
        low = tl.zeros((1, 1, 1), SPEC.acc) + weights[SPEC.outputs * SPEC.width]
        result = tl.minimum(result, high, propagate_nan=tl.PropagateNan.ALL)
        result = tl.maximum(result, low, propagate_nan=tl.PropagateNan.ALL)
    if len(space) == 2 and OUTPUT == 0:
        result = (result - space[0] * raw[SPEC.width].to(SPEC.acc)) / space[1]
    return result


@triton.jit
def step_row(guided, reads, weights, ROW: tl.constexpr, SPEC: tl.constexpr):
    """One output of a step: weights of the guided prediction and of the blocks that the step reads."""
    start: tl.constexpr = SPEC.outputs * SPEC.width + 2 * SPEC.clamps + ROW * (1 + len(reads))
    result = guided * weights[start]
    for k in tl.static_range(len(reads)):
        result = tl.fma(reads[k].to(SPEC.acc), weights[start + 1 + k], result)
    return result


@triton.jit
def store_block(
    outs, out_strides, tail, tail_strides, place, inside, raw, weights, space, SPEC: tl.constexpr
):  # fmt: skip
    """Every output of one block. All are worked out from the inputs before any is stored, which it may overwrite.

    Args:
        raw: blocks of the predictions, the vectors among the extras, ``x`` of an affine program, elementwise inputs.
        tail: pointers to the rest of what a step reads: no sum needs it, so that it is loaded here.
        place: digits of the groups and elements; inside: which there are.
    """
    guided = combine(raw, weights, space, 0, SPEC)  # [GROUPS, LANES, VECTOR]
    results = ()
    if SPEC.rows > 0:
        reads = ()
        if len(space) == 2:
            reads = (raw[SPEC.width],)
        reads = reads + load_block(tail, tail_strides, place, inside, SPEC.whole)
        for r in tl.static_range(fixed(SPEC.rows)):
            results = results + (step_row(guided, reads, weights, r, SPEC),)
    else:
        results = results + (guided,)
    for o in tl.static_range(1, fixed(SPEC.outputs)):
        results = results + (combine(raw, weights, space, o, SPEC),)
    for o in tl.static_range(len(outs)):
        pointer = outs[o] + offset(place, out_strides, o)
        result = results[SPEC.results[o]]
        if outs[o].dtype.element_ty != tl.float64 and result.dtype == tl.float64:
            result = result.to(tl.float32)  # No direct conversion to the half types on every target.
        if SPEC.whole:
            tl.store(pointer, result.to(outs[o].dtype.element_ty))
        else:
            tl.store(pointer, result.to(outs[o].dtype.element_ty), mask=inside)
