"""Guidance of named predictions by a rule."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import fastcfg_kernels as fk
import torch
from torch import Tensor

from .groups import Groups
from .parameterization import Kind, Prediction
from .rules import Rule
from .schedules import Schedule
from .state import State

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
    state: State | None = None,
    numerics: Literal["fp32", "eager"] = "fp32",
    x: Tensor | None = None,
    prediction: Prediction | None = None,
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
        backend: ``"auto"``, ``"triton"``, ``"cpp"``, ``"inductor"`` or ``"torch"``; see :func:`fastcfg_kernels.guide`.
        order: names of the blocks of ``batch``.
        check: also check that tensors in ``params`` are finite, which waits for the device.
        state: what a rule with memory (momentum, a cached delta) reads and writes: one for each request.
        numerics: ``"fp32"``, float32 accumulation and one rounding; or ``"eager"``, for rules without sums the
            operations of diffusers in their order and the predictions' dtype, and so its bits.
        x, prediction: for a rule with a domain (:class:`fastcfg.InDomain`), the noisy latent ``[B, ...]`` and what
            the model predicts at which noise level.
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
    if (
        (lerp := rule.lerp) is not None
        and params is None
        and backend is None
        and numerics == "fp32"
        and len(predictions) == 2
    ):
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
            and "FASTCFG_BACKEND" not in os.environ
        ):
            return torch.lerp(u, c, lerp.weight)
    if rule.prepares:
        return _prepared(rule, predictions, params or {}, out, backend, numerics, check)
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
        values: Sequence[Any] = rule.numbers
    else:
        values = _values(rule, params or {}, tensors[0], check)
    if numerics == "eager":
        return _eager(rule, predictions, values, out)
    if numerics != "fp32":
        raise ValueError(f"numerics: expected 'fp32' or 'eager', got {numerics!r}")
    program, space = lowered.program, []
    if lowered.domain is not None:
        if x is None or prediction is None:
            raise ValueError(
                f"x, prediction: {type(rule).__name__} works on {lowered.domain}; the call has to give both"
            )
        if prediction.kind != lowered.domain:
            program, space = lowered.affine_program, [x]
            size = tensors[0].shape[0]
            levels = prediction.to(cast(Kind, lowered.domain))
            values = [*values, *(fk.check_param("prediction", level, size, x.device) for level in levels)]
    if lowered.dims is None and not lowered.extras and not lowered.updates:
        return fk.guide_checked(tensors, program, values, extras=space, out=out, backend=backend)[0]
    return _with_state(rule, program, tensors, values, space, state, out, backend)


def _values(rule: Rule, params: Mapping[str, Any], first: Tensor, check: bool) -> list[Any]:
    """The rule's parameters with a call's overrides, checked, in the program's order."""
    values = dict(rule.lowered.params)
    for name, value in params.items():
        if name not in values:
            raise ValueError(f"params: {type(rule).__name__} has no parameter {name!r}; it has {sorted(values)}")
        values[name] = value
    for name, value in values.items():
        if isinstance(value, Schedule):
            raise ValueError(f"{name}: is a schedule; resolve it with rule.at(step, num_steps) before guiding")
    if rule.numbers is None and not any(isinstance(value, Schedule) for value in rule.lowered.params.values()):
        raise ValueError(f"rule: {type(rule).__name__} changes by step; resolve it with rule.at(step, num_steps)")
    batch = first.shape[0] if first.dim() else 0
    return [fk.check_param(name, values[name], batch, first.device, check) for name in rule.program.params]


def _prepared(
    rule: Rule,
    predictions: Mapping[str, Tensor],
    params: Mapping[str, Any],
    out: Tensor | None,
    backend: str | None,
    numerics: str,
    check: bool,
) -> Tensor:
    """Guide a rule that makes its formula's inputs of the predictions first, in the dtype that is computed in."""
    names = rule.conditions
    if set(predictions) != set(names):
        missing = [n for n in names if n not in predictions]
        extra = [n for n in predictions if n not in names]
        raise ValueError(f"predictions: {type(rule).__name__} takes {list(names)}; missing {missing}, unknown {extra}")
    for name, value in predictions.items():
        if not isinstance(value, Tensor) or value.dtype not in _FLOATS:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a float32, bfloat16, float16 or float64 tensor, got {kind}")
    if numerics != "fp32":
        raise ValueError(f"numerics: {type(rule).__name__} has 'fp32' only, got {numerics!r}")
    if rule.lowered.domain is not None:
        raise ValueError(f"rule: {type(rule).__name__} makes tensors of the predictions, and has no domain of its own")
    first = predictions[names[0]]
    made, left = rule.prepare(predictions, params)
    values = _values(rule, left, first, check)
    inputs = [made[n] if n in made else predictions[n] for n in rule.lowered.predictions]
    if len(inputs) > 1:
        inputs = [tensor.to(inputs[0].dtype) for tensor in inputs]
        result = fk.guide_checked(inputs, rule.program, values, backend=backend)[0]
    else:
        result = inputs[0]
    return result.to(first.dtype) if out is None else out.copy_(result)


def _eager(rule: Rule, predictions: Mapping[str, Tensor], values: Sequence[Any], out: Tensor | None) -> Tensor:
    def by_sample(value: Any, like: Tensor) -> Any:
        return value.view(-1, *[1] * (like.dim() - 1)) if isinstance(value, Tensor) and value.dim() else value

    first = next(iter(predictions.values()))
    named = {n: by_sample(v, first) for n, v in zip(rule.program.params, values, strict=True)}
    result = rule.eager(predictions, named)
    return result if out is None else out.copy_(result)


def _with_state(
    rule: Rule,
    program: fk.Program,
    tensors: Sequence[Tensor],
    values: Sequence[Any],
    space: Sequence[Tensor],
    state: State | None,
    out: Tensor | None,
    backend: str | None,
) -> Tensor:
    """Guide a rule that carries state, or whose sums run over other dimensions than all but the batch."""
    lowered = rule.lowered
    first = tensors[0]
    if (lowered.extras or lowered.updates) and state is None:
        names = sorted({*lowered.extras, *lowered.updates})
        raise ValueError(f"state: {type(rule).__name__} carries {names}; give state=fastcfg.State(), one for a request")
    memory = State() if state is None else state
    acc = torch.float64 if first.dtype == torch.float64 else torch.float32
    extras = [memory[n] if n in memory else torch.zeros_like(first, dtype=acc) for n in lowered.extras]
    extras += space
    if lowered.dims is None:
        results = fk.guide_checked(tensors, program, values, extras=extras, out=out, backend=backend)
    else:
        groups = Groups(first.shape, lowered.dims)
        results = fk.guide_checked(
            [groups.rows(t) for t in tensors],
            program,
            [groups.values(v) for v in values],
            extras=[groups.rows(e) for e in extras],
            # A group is small and there are many: whole-tensor operations, not a loop over groups.
            backend=backend or ("torch" if first.device.type == "cpu" else None),
        )
        results = [groups.back(r) for r in results]
        if out is not None:
            results[0] = out.copy_(results[0])
    for name, result in zip(lowered.updates, results[1:], strict=True):
        memory[name] = result
    return results[0]
