"""Compiles what a rule's calls will need before the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..prediction import Prediction
from ..rules import Rule
from .guide import guide
from .state import State

__all__ = ["warmup"]


def warmup(
    rule: Rule,
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    params: Mapping[str, Any] | None = None,
    prediction: Prediction | None = None,
) -> None:
    """Guide zeros of every shape, so that kernels are compiled and memory for captured launches is set aside.

    Args:
        rule: a rule whose schedules are resolved.
        shapes: of a prediction, ``[B, ...]``; dtype, device: as the calls will have them.
        params: overrides of the kind that the calls will give: a number and a tensor are different kernels.
        prediction: what the model predicts, for a rule with a domain.

    Raises:
        ValueError: naming ``shapes`` if one has fewer than two dimensions, and as :func:`fastcfg.guide` does.
    """
    for shape in shapes:
        if len(shape) < 2 or any(size < 1 for size in shape):
            raise ValueError(f"shapes: expected [B, ...] with at least two positive sizes, got {list(shape)}")
        predictions: dict[str, Any] = {
            name: torch.zeros(*shape, dtype=dtype, device=device) for name in rule.conditions
        }
        if rule.lowered.domain is None:
            prediction = None  # A rule of any space is warmed up for all of them.
        x = None if prediction is None else torch.zeros(*shape, dtype=dtype, device=device)
        with torch.no_grad():
            guide(rule, params=params, state=State(), x=x, prediction=prediction, **predictions)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
