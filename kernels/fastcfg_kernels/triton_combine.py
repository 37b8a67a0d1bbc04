"""Device functions of the weigh and combine stages: weights from merged sums, outputs from weights."""

# The interpreter and the compiler both read annotations of `tl.constexpr`: no postponed evaluation here.
import triton
import triton.language as tl

from .triton_tiles import fixed_vectors

__all__ = ["store_tile", "weigh"]


@triton.jit
def weigh(means, sums, count, values, WEIGH: tl.constexpr, MEANS: tl.constexpr, ACC: tl.constexpr):
    """Weights from merged sums and the sample's parameters: calls the generated formula."""
    gram = sums
    for i in tl.static_range(len(MEANS)):
        gram = gram + (means[MEANS[i]],)
    return WEIGH(gram, count.to(ACC), values)


@triton.jit
def combine(
    raw, weights, space, OUTPUT: tl.constexpr, OUTPUTS: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    CLAMP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """``sum_k w_k b_k`` over the difference basis and the extras for one output; the first one is clamped."""
    vectors = fixed_vectors(raw, space, SIZE, ACC)
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
def store_tile(
    outs, b, out_strides, offsets, count, raw, weights, space, SIZE: tl.constexpr, WIDTH: tl.constexpr,
    CLAMP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Every output of one tile. All are worked out from the inputs before any is stored, which it may overwrite."""
    results = ()
    for o in tl.static_range(len(outs)):
        results = results + (combine(raw, weights, space, o, len(outs), SIZE, WIDTH, CLAMP, ACC),)
    for o in tl.static_range(len(outs)):
        pointer = outs[o] + b * out_strides[o] + offsets
        tl.store(pointer, results[o].to(outs[o].dtype.element_ty), mask=offsets < count)
