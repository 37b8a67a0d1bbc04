"""Launch of a rule on named tensors, as one call of the fused op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, cast

import fastcfg_kernels as fk
import torch
from fastcfg_kernels.backends.torch.functional import Merge
from fastcfg_kernels.backends.torch.tiles import accumulator
from fastcfg_kernels.checks import check_tensors
from torch import Tensor

from ..prediction import Kind, Prediction, domain_map
from ..rules import Rule
from ..schedules import Schedule
from .state import State

__all__ = ["check_names", "domain_levels", "launch", "parameter_values", "rule_inputs"]


def check_names(rule: Rule, names: Sequence[str], predictions: Mapping[str, Any]) -> None:
    """Raise unless ``predictions`` are tensors by exactly these names."""
    if len(predictions) != len(names) or any(name not in predictions for name in names):
        missing = [n for n in names if n not in predictions]
        extra = [n for n in predictions if n not in names]
        hint = _meant(extra, rule, missing)
        raise ValueError(
            f"predictions: {type(rule).__name__} takes {list(names)}; missing {missing}, unknown {extra}{hint}"
        )
    for name in names:
        if not isinstance(predictions[name], Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(predictions[name]).__name__}")


def _meant(given: Sequence[str], rule: Rule, names: Sequence[str]) -> str:
    """Return what names that are not known may have been meant for."""
    parameters = rule.lowered.params
    if own := [name for name in given if name in parameters]:
        return "; did you mean params={" + ", ".join(f"{name!r}: ..." for name in own) + "}?"
    near = {name: found[0] for name in given if (found := get_close_matches(name, [*names, *parameters], 1))}
    return "; did you mean " + ", ".join(f"{new} for {name}" for name, new in near.items()) + "?" if near else ""


def rule_inputs(
    rule: Rule, predictions: Mapping[str, Tensor], params: Mapping[str, Any] | None, check: bool
) -> tuple[list[Tensor], Sequence[Any]]:
    """The program's predictions in its order, and its parameters' values."""
    names = rule.lowered.predictions
    check_names(rule, names, predictions)
    tensors = [predictions[name] for name in names]
    if not params and rule.numbers is not None:
        return tensors, rule.numbers
    return tensors, parameter_values(rule, params or {}, tensors[0], check)


def parameter_values(rule: Rule, params: Mapping[str, Any], first: Tensor, check: bool) -> list[Any]:
    """The rule's parameters with a call's overrides, checked, in the program's order."""
    values = dict(rule.lowered.params)
    for name, value in params.items():
        if name not in values:
            hint = _meant([name], rule, sorted(values))
            raise ValueError(f"params: {type(rule).__name__} has no parameter {name!r}; it has {sorted(values)}{hint}")
        rule.lowered.check_range(name, value, check)
        values[name] = value
    for name, value in values.items():
        if isinstance(value, Schedule):
            raise ValueError(f"{name}: is a schedule; resolve it with rule.at(step, num_steps) before guiding")
    if (
        rule.numbers is None
        and rule.scheduled
        and not any(isinstance(value, Schedule) for value in rule.lowered.params.values())
    ):
        raise ValueError(f"rule: {type(rule).__name__} changes by step; resolve it with rule.at(step, num_steps)")
    batch = first.shape[0] if first.dim() else 0
    checked = [fk.check_param(name, values[name], batch, first.device, check) for name in rule.program.params]
    largest = torch.finfo(accumulator(first.dtype)).max
    for name, value in zip(rule.program.params, checked, strict=True):
        if not isinstance(value, Tensor) and abs(value) > largest:
            raise ValueError(f"{name}: expected a number that {accumulator(first.dtype)} holds, got {value}")
    return checked


def domain_levels(
    rule: Rule, prediction: Prediction | None, x: Tensor | None, scale: Any = 1.0
) -> tuple[list[Any], bool]:
    """``shift`` and ``gain`` of an affine program for the rule's domain; empty where the model predicts it itself.

    Args:
        scale: factor from x to the model's input, which ``prediction`` is about.

    Returns:
        The two, and whether they need float64; see :func:`fastcfg.prediction.domain_map`.
    """
    domain = rule.lowered.domain
    if domain is None:
        return [], False
    if x is None or prediction is None:
        raise ValueError(f"x, prediction: {type(rule).__name__} works on {domain}; the call has to give both")
    if prediction.kind == domain:
        return [], False
    shift, gain, wide = domain_map(prediction, cast(Kind, domain))
    return [fk.check_param("prediction", level, x.shape[0], x.device) for level in (shift * scale, gain)], wide


def launch(
    rule: Rule,
    program: fk.Program,
    tensors: Sequence[Tensor],
    values: Sequence[Any],
    *,
    out: Tensor | None = None,
    targets: Sequence[fk.Target] | None = None,
    tail: Sequence[Tensor] = (),
    scale_map: Tensor | None = None,
    mask: Tensor | None = None,
    shards: Merge | None = None,
    state: State | None = None,
    backend: str | None = None,
    stats_out: Tensor | None = None,
    wide: bool = False,
) -> list[Tensor]:
    """Run a rule's program (or a variant of it), and keep what the rule remembers.

    Args:
        out: tensor for the guided prediction; targets: in its place, for the results of a program that ends in a
            step. Those that the rule's state becomes are added here.
        tail: the program's inputs after the rule's own.
        shards: where the tensors are parts of the samples; see :class:`fastcfg.parallel.Shards`.
        stats_out: what the stats of a program that has them are written to.
        wide: compute in float64, whatever the tensors' dtype.

    Returns:
        A tensor for each target.
    """
    lowered = rule.lowered
    first = tensors[0]
    if (lowered.extras or lowered.updates) and state is None:
        names = sorted({*lowered.extras, *lowered.updates})
        raise ValueError(f"state: {type(rule).__name__} carries {names}; give state=fastcfg.State(), one for a request")
    memory = State() if state is None else state
    acc = accumulator(first.dtype)
    if missing := [name for name in lowered.given if name not in memory]:
        raise ValueError(
            f"state: {type(rule).__name__} reads {missing[0]!r}, which the caller gives; put it there before the first "
            f"call, as state[{missing[0]!r}] = tensor of the predictions' shape"
        )
    extras = [memory[n] if n in memory else torch.zeros_like(first, dtype=acc) for n in lowered.extras]
    extras += tail
    if targets is None:
        targets = [(0, first.dtype if out is None else out)]
    after = program.rows or 1
    every = [*targets, *((after + k, acc) for k in range(len(lowered.updates)))]
    if lowered.dims is not None and shards is not None:
        raise ValueError(f"shards: the sums of {type(rule).__name__} run over dims={lowered.dims}, not over samples")
    options: dict[str, Any] = {"scale_map": scale_map, "mask": mask, "dims": lowered.dims, "merge": shards}
    options |= {"backend": backend}
    if wide and acc != torch.float64:
        check_tensors(lowered.predictions, tensors)
        told = None if stats_out is None else stats_out.double()
        apart = [(k, torch.float64) for k, _ in every]
        values = [v.double() if isinstance(v, Tensor) else v for v in values]
        given = [t.double() for t in tensors]
        made = fk.guide_checked(
            given, program, values, extras=[t.double() for t in extras], targets=apart, stats=told, **options
        )
        results = [t.copy_(r) if isinstance(t, Tensor) else r.to(t) for r, (_, t) in zip(made, every, strict=True)]
        if stats_out is not None and told is not None:
            stats_out.copy_(told)
    else:
        results = fk.guide_checked(
            tensors, program, values, extras=extras, out=out, targets=every, stats=stats_out, **options
        )
    for name, result in zip(lowered.updates, results[len(targets) :], strict=True):
        memory.remember(name, result)
    return results[: len(targets)]
