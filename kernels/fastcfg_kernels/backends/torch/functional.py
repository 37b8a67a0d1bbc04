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
from ...host import host_params, weigh_on_host
from ...memory import observed
from .tiles import Moments, accumulator, basis, sample_moments, spread

__all__ = ["Merge", "combine", "guide_rows"]


def _weighted_sum(weights: Sequence[Any], vectors: Sequence[Tensor]) -> Tensor:
    """Return the sum of weights times vectors, a new tensor, in one operation for each but the first."""
    result: Tensor | None = None
    fresh = False
    for weight, vector in zip(weights, vectors, strict=True):
        if isinstance(weight, Tensor):
            over = spread(weight, vector)
            result, fresh = over * vector if result is None else torch.addcmul(result, over, vector), True
        elif weight == 1 and result is None:
            result = vector
        elif weight != 0:
            result, fresh = weight * vector if result is None else torch.add(result, vector, alpha=weight), True
    if result is None:
        return torch.zeros_like(vectors[0])
    return result if fresh else result.clone()


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


def _weigh_on_host(program: Program, moments: Moments, count: Any, values: Sequence[Any]) -> Sequence[Tensor]:
    """Return ``[B]`` weights: a formula of a dozen operations on ``[B]`` tensors takes longer than on numbers."""
    sums = moments.sums(program)
    rows = torch.stack(list(sums), -1).tolist()
    counts = count.tolist() if isinstance(count, Tensor) else [count] * len(rows)
    given = host_params(values, len(rows))
    weighed = [weigh_on_host(program, *one) for one in zip(rows, counts, given, strict=True)]
    return torch.tensor(weighed, dtype=sums[0].dtype).unbind(-1)


def _beyond(moments: Moments, first: Tensor) -> Tensor | None:
    """Return the rows whose sums float32's range did not hold, ``[...]``; None for none, or where a look would wait.

    They are looked at on a CPU outside of traces: nothing has to be waited for there.
    """
    if first.device.type != "cpu" or first.dtype == torch.float64 or observed() or not first.numel():
        return None
    pairs, means = [torch.stack(v).detach().abs() if v else None for v in (moments.pairs, moments.means)]
    held: Tensor | None = None
    if pairs is not None:
        held = ((pairs < 1e37) & (pairs > 1e-27)).all(0)
    if means is not None:
        sound = (means < 1e37).all(0)
        held = sound if held is None else held & sound
    return None if held is None or bool(held.all()) else ~held


def _weighed_in_double(
    program: Program, inputs: Sequence[Tensor], values: Sequence[Any], weighed: Sequence[Any], wide: Tensor
) -> tuple[Any, ...]:
    """Return the weights with those of some rows from sums in float64; the other rows keep theirs, to the bit."""
    numbers = [v.double() if isinstance(v, Tensor) else v for v in values]
    moments = sample_moments(program, [t.double() for t in inputs], numbers)
    count = moments.count.clamp(min=1) if isinstance(moments.count, Tensor) else moments.count
    again = program.weigh(moments.sums(program), count, tuple(numbers))
    pairs = list(zip(weighed, again, strict=True))
    # A projection on numbers next to nothing weighs more than the combine can use: such a row keeps what it had.
    for value in again:
        if isinstance(value, Tensor):
            wide = wide & (value.detach().abs() <= 1e18)
    both = [(a, b, isinstance(a, Tensor) and isinstance(b, Tensor)) for a, b in pairs]
    return tuple([torch.where(wide, b.to(a.dtype), a) if is_row else a for a, b, is_row in both])


Merge = Callable[[Program, Moments], Moments]
"""From the moments of a part of each row to those of the whole rows."""


def guide_rows(
    program: Program,
    inputs: Sequence[Tensor],
    params: Sequence[Any],
    merge: Merge | None = None,
    stats: Tensor | None = None,
    host: bool = False,
) -> list[Tensor]:
    """Sums, weights and combine of rows.

    Args:
        inputs: K predictions ``[..., N]`` of one floating dtype, then the extras, then the elementwise scale and the
            mask where the program has them; a row is a sample.
        params: numbers, 0-dim or ``[...]`` tensors, in the order of ``program.params``.
        merge: where the rows given are a part of the rows that the sums run over.
        stats: ``[rows, K]``, where a program that has stats writes them.
        host: whether rows ``[B, N]`` lie in a host's memory and nothing is traced: their sums become numbers, and the
            formula runs on these, in float64 as native code has it.

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
    weighed = (
        _weigh_on_host(program, moments, count, values) if host else program.weigh(moments.sums(program), count, values)
    )
    if merge is None and program.reduces and (wide := _beyond(moments, inputs[0])) is not None:
        weighed = _weighed_in_double(program, inputs, values, weighed, wide)
    if program.stats:
        weighed, last = weighed[: -len(program.stats)], weighed[-len(program.stats) :]
        if stats is not None:
            for column, value in zip(stats.view(-1, len(last)).unbind(-1), last, strict=True):
                column.copy_(value.detach()) if isinstance(value, Tensor) else column.fill_(value)
    return combine(program, inputs, weighed, values)
