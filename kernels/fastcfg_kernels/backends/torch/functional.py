"""The torch path: the whole of a program in torch operations.

It runs on any device, is differentiable, and traces under ``torch.compile`` and ``torch.export``. Every other path
is checked against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...formula.program import Program
from .tiles import Moments, accumulator, basis, sample_moments, spread

__all__ = ["Merge", "combine", "guide_rows"]


def _weighted_sum(weights: Sequence[Any], vectors: Sequence[Tensor]) -> Tensor:
    result: Tensor | None = None
    for weight, vector in zip(weights, vectors, strict=True):
        if isinstance(weight, Tensor) or weight != 0:
            unit = not isinstance(weight, Tensor) and weight == 1
            term = vector if unit else spread(weight, vector) * vector
            alone = vector is term and result is None
            result = term if result is None else result + term
    if result is None:
        return torch.zeros_like(vectors[0])
    return result.clone() if alone and any([result is v for v in vectors]) else result  # A result is no input.


def combine(
    program: Program, inputs: Sequence[Tensor], weighed: Sequence[Any], params: Sequence[Any] = ()
) -> list[Tensor]:
    """``sum_k w_k b_k`` over the difference basis and the extras for each output, in the accumulator's dtype.

    The first is clamped, taken back to the predictions' own space, and becomes the rows of a step.

    Args:
        inputs: the program's inputs ``[..., N]``.
        weighed: what ``program.weigh`` returned: numbers or ``[...]`` tensors.
        params: in the order of ``program.params``; only an affine program needs them.
    """
    acc = accumulator(inputs[0].dtype)
    vectors = basis(program, inputs, params, acc)
    width = program.width
    end = program.outputs * width
    results = [_weighted_sum(weighed[o : o + width], vectors) for o in range(0, end, width)]
    if program.clamps:
        low, high = (spread(bound, results[0]) for bound in weighed[end : end + 2])
        if isinstance(low, Tensor) != isinstance(high, Tensor):
            low, high = (torch.as_tensor(b, dtype=results[0].dtype, device=results[0].device) for b in (low, high))
        results[0] = torch.clamp(results[0], low, high)
    if program.affine:
        shift, gain = (spread(v, results[0]) for v in params[-2:])
        results[0] = (results[0] - shift * inputs[width].to(acc)) / gain
    if program.rows:
        size = len(program.predictions) + len(program.extras)
        terms = [results[0], *(tensor.to(acc) for tensor in inputs[width:size])]
        coefficients = weighed[len(weighed) - program.rows * len(terms) :]
        rows = range(0, len(coefficients), len(terms))
        results[:1] = [_weighted_sum(coefficients[r : r + len(terms)], terms) for r in rows]
    return results


Merge = Callable[[Program, Moments], Moments]
"""From the moments of a part of each row to those of the whole rows."""


def guide_rows(
    program: Program,
    inputs: Sequence[Tensor],
    params: Sequence[Any],
    merge: Merge | None = None,
    stats: Tensor | None = None,
) -> list[Tensor]:
    """Sums, weights and combine of rows.

    Args:
        inputs: K predictions ``[..., N]`` of one floating dtype, then the extras, then the elementwise scale and the
            mask where the program has them; a row is a sample.
        params: numbers, 0-dim or ``[...]`` tensors, in the order of ``program.params``.
        merge: where the rows given are a part of the rows that the sums run over.
        stats: ``[rows, K]``, where a program that has stats writes them.

    Returns:
        The program's results ``[..., N]`` in the accumulator's dtype.
    """
    acc = accumulator(inputs[0].dtype)
    values = tuple(p.to(acc) if isinstance(p, Tensor) else p for p in params)
    moments = sample_moments(program, inputs, values)
    if merge is not None and program.reduces:
        moments = merge(program, moments)
    # A row that the mask leaves out whole counts as one element.
    count = moments.count.clamp(min=1) if isinstance(moments.count, Tensor) else moments.count
    weighed = program.weigh(moments.sums(program), count, values)
    if program.stats:
        weighed, last = weighed[: -len(program.stats)], weighed[-len(program.stats) :]
        if stats is not None:
            for column, value in zip(stats.view(-1, len(last)).unbind(-1), last, strict=True):
                column.copy_(value.detach()) if isinstance(value, Tensor) else column.fill_(value)
    return combine(program, inputs, weighed, values)
