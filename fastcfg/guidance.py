"""Guidance of named predictions by a rule."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import fastcfg_kernels as fk
import torch
from torch import Tensor

from .rules import Rule
from .schedules import Schedule

__all__ = ["guide", "split_batch"]

_FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


def split_batch(rule: Rule, batch: Tensor, order: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The predictions of one tensor that holds all of them along dim 0, as views.

    Args:
        batch: ``[k*B, ...]``, k blocks of B samples in the order of ``rule.conditions``, or of ``order``.
        order: the blocks' names where they come in another order (``("cond", "uncond")``, say).

    Raises:
        ValueError: naming ``order`` or ``batch`` if they don't fit the rule.
    """
    names = tuple(order or rule.conditions)
    if sorted(names) != sorted(rule.conditions):
        raise ValueError(f"order: expected the names {list(rule.conditions)} in some order, got {list(names)}")
    if batch.dim() < 2 or batch.shape[0] % len(names):
        raise ValueError(
            f"batch: expected [k*B, ...] with k = {len(names)} ({', '.join(names)}), got {list(batch.shape)}"
        )
    parts = batch.view(len(names), batch.shape[0] // len(names), *batch.shape[1:]).unbind(0)
    return dict(zip(names, parts, strict=True))


def guide(
    rule: Rule,
    batch: Tensor | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
    order: Sequence[str] | None = None,
    check: bool = False,
    **predictions: Tensor,
) -> Tensor:
    """The guided prediction of a rule.

    ``guide(CFG(7.5), uncond=u, cond=c)``, or ``guide(CFG(7.5), batch)`` for one tensor that holds all of them.

    Args:
        rule: a rule whose schedules are resolved (``rule.at(step, num_steps)``).
        batch: ``[k*B, ...]``, the predictions along dim 0 in the order of ``rule.conditions`` (or of ``order``).
        params: overrides of the rule's parameters by name: a number, or a 0-dim or ``[B]`` floating tensor for a
            value per sample. Nothing is read back from a device.
        out: tensor to write; it may be one of the predictions.
        backend: ``"auto"``, ``"triton"``, ``"inductor"`` or ``"torch"``; see :func:`fastcfg_kernels.guide`.
        order: names of the blocks of ``batch``.
        check: also check that tensors in ``params`` are finite, which waits for the device.
        predictions: tensors ``[B, ...]`` of one shape, dtype and device, by the names in ``rule.conditions``.

    Returns:
        ``[B, ...]`` in the predictions' dtype, with float32 accumulation (float64 for float64) and one rounding.

    Raises:
        TypeError, ValueError: naming the argument, for anything that does not fit.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a fastcfg rule, got {type(rule).__name__}")
    if batch is not None:
        if predictions:
            raise ValueError(f"batch: give one tensor or named predictions, not both (got {sorted(predictions)})")
        predictions = split_batch(rule, batch, order)
    if (lerp := rule.lerp) is not None and params is None and backend is None and len(predictions) == 2:
        # The commonest call, one kernel of torch: nothing may stand in its way.
        u, c = predictions.get(lerp.base), predictions.get(lerp.delta)
        if (
            isinstance(u, Tensor)
            and isinstance(c, Tensor)
            and u.shape == c.shape
            and u.dtype is c.dtype
            and u.dtype in _FLOATS
            and u.device == c.device
            and u.dim() > 1
            and out is None
            and not os.environ.get("FASTCFG_BACKEND")
        ):
            return torch.lerp(u, c, lerp.weight)
    lowered = rule.lowered
    names = lowered.predictions
    if len(predictions) != len(names) or any(name not in predictions for name in names):
        missing = [n for n in names if n not in predictions]
        extra = [n for n in predictions if n not in names]
        raise ValueError(f"predictions: {type(rule).__name__} takes {list(names)}; missing {missing}, unknown {extra}")
    for name in names:
        if not isinstance(predictions[name], Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(predictions[name]).__name__}")
    tensors = [predictions[name] for name in names]
    if not params and rule.numbers is not None:
        return fk.guide_checked(tensors, lowered.program, rule.numbers, out=out, backend=backend)[0]
    values = dict(lowered.params)
    for name, value in (params or {}).items():
        if name not in values:
            raise ValueError(f"params: {type(rule).__name__} has no parameter {name!r}; it has {sorted(values)}")
        values[name] = value
    for name, value in values.items():
        if isinstance(value, Schedule):
            raise ValueError(f"{name}: is a schedule; resolve it with rule.at(step, num_steps) before guiding")
    return fk.guide(tensors, lowered.program, values, out=out, backend=backend, check=check)
