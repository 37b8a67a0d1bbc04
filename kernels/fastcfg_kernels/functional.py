"""The torch path: the whole of a program in torch operations.

It runs on any device, is differentiable, and traces under ``torch.compile`` and ``torch.export``. Every other path
is checked against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .program import Program
from .tiles import accumulator, basis, sample_sums

__all__ = ["combine", "guide_rows"]


def combine(program: Program, predictions: Sequence[Tensor], weighed: Sequence[Any]) -> Tensor:
    """``sum_k w_k b_k`` over the difference basis and the clamp, in the accumulator's dtype.

    Args:
        predictions: K tensors ``[..., N]``.
        weighed: what ``program.weigh`` returned: numbers or ``[...]`` tensors.
    """
    vectors = basis(predictions, accumulator(predictions[0].dtype))

    def over_elements(value: Any) -> Any:
        return value.unsqueeze(-1) if isinstance(value, Tensor) and value.dim() else value

    result: Tensor | None = None
    for weight, vector in zip(weighed, vectors, strict=False):
        unit = not isinstance(weight, Tensor) and weight == 1
        term = vector if unit else over_elements(weight) * vector
        result = term if result is None else result + term
    assert result is not None
    if program.clamps:
        low, high = (over_elements(bound) for bound in weighed[-2:])
        if isinstance(low, Tensor) != isinstance(high, Tensor):
            low, high = (torch.as_tensor(b, dtype=result.dtype, device=result.device) for b in (low, high))
        result = torch.clamp(result, low, high)
    return result


def guide_rows(program: Program, predictions: Sequence[Tensor], params: Sequence[Any]) -> Tensor:
    """Sums, weights and combine of rows.

    Args:
        predictions: K tensors ``[..., N]`` of one floating dtype; a row is a sample.
        params: numbers, 0-dim or ``[...]`` tensors, in the order of ``program.params``.

    Returns:
        ``[..., N]`` in the predictions' dtype.
    """
    dtype = predictions[0].dtype
    acc = accumulator(dtype)
    values = tuple(p.to(acc) if isinstance(p, Tensor) else p for p in params)
    sums = tuple(sample_sums(program, predictions)) if program.reduces else ()
    weighed = program.weigh(sums, float(predictions[0].shape[-1]), values)
    return combine(program, predictions, weighed).to(dtype)
