"""Planner of the passes that a guided step needs, and of a run's cost.

A rule names the predictions it combines. Fewer passes may do: a prediction whose weight is zero is not needed, and two
predictions under the same condition are one. The plan is made from the rule's numbers and from the identity of what
the conditions hold, never from values on a device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.conditions import Conditions, same_condition
from ..rules import Linear, Rule
from ..schedules import check_step
from .gates import Gate, gate_for, main_condition

__all__ = ["PassPlan", "Planner", "RunCost", "check_conditions", "plan", "run_cost", "same_condition"]


@dataclass(frozen=True)
class PassPlan:
    """The passes of one step.

    Attributes:
        rule: the rule to guide by, its schedules resolved and its zero weights gone.
        passes: conditions to run the model under, in batch order.
        sources: pairs (prediction that :attr:`rule` takes, pass that gives it); several may share one.
        saved_by: passes that the full rule would have run besides, by reason (:data:`fastcfg.denoiser.REASONS`).
        main: under a gate, the pass that the deltas of the others are remembered from; else empty.
        recalled: pairs (pass that is not run, weights of its last two remembered deltas).
        begins: passes whose remembered deltas are void, where a gate asks.
    """

    rule: Rule
    passes: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]
    saved_by: tuple[tuple[str, int], ...] = ()
    main: str = ""
    recalled: tuple[tuple[str, tuple[float, float]], ...] = ()
    begins: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[str, ...]:
        """The passes whose deltas are remembered."""
        return tuple(name for name in self.passes if name != self.main) if self.main else ()

    @property
    def ended(self) -> bool:
        """Return whether a gate has ended the guidance: the result is the conditional prediction."""
        return any(reason == "stopped" for reason, _ in self.saved_by)

    @property
    def memory(self) -> tuple[Any, ...]:
        """Return what of the gate is structure: equal for two plans that one piece of code can serve."""
        return self.main, tuple(name for name, _ in self.recalled), self.begins

    @property
    def saved(self) -> int:
        """Passes that the full rule would have run besides."""
        return sum(number for _, number in self.saved_by)

    @property
    def count(self) -> int:
        """Return how many passes."""
        return len(self.passes)

    @property
    def unguided(self) -> bool:
        """Return whether the result is the only pass itself, so that there is nothing to combine."""
        return isinstance(self.rule, Linear) and self.rule.weights == ((self.passes[0], 1.0),)

    def predictions(self, results: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The predictions that :attr:`rule` takes, from the passes' results by name."""
        return {name: results[source] for name, source in self.sources}


def plan(
    rule: Rule,
    conditions: Conditions | None = None,
    step: int | None = None,
    num_steps: int | None = None,
    *,
    sigma: float | None = None,
    fixed: bool = False,
) -> PassPlan:
    """The passes that a rule needs at a step.

    Zero weights drop (CFG at scale 1 needs ``cond`` alone, dual CFG with ``negative_scale = scale - 1`` no
    unconditional pass). Predictions under the same condition share a pass; in a rule without sums their weights add
    up, and may cancel.

    Args:
        conditions: for each name in ``rule.conditions``, the model's keyword arguments; None takes all for different.
            See :func:`fastcfg.denoiser.planner.same_condition` for when two are the same.
        step, num_steps, sigma: where the sampler is; needed by a rule with schedules.
        fixed: keep the rule's formula and all its predictions, because parameters are overridden at the call; passes
            are still shared.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a fastcfg rule, got {type(rule).__name__}")
    check_conditions(rule, conditions)
    resolved, saved_by = _resolve(rule, step, num_steps, sigma, fixed)
    return _shared(resolved, saved_by, _first_of_same(resolved.conditions, conditions), fixed)


def check_conditions(rule: Rule, conditions: Conditions | None) -> None:
    """Raise a ValueError unless there is a condition for each of the rule's predictions, and no other."""
    names = rule.conditions
    if conditions is None or (len(conditions) == len(names) and all(name in conditions for name in names)):
        return
    missing = [name for name in names if name not in conditions]
    extra = [name for name in conditions if name not in names]
    raise ValueError(f"conditions: {type(rule).__name__} takes {list(names)}; missing {missing}, unknown {extra}")


def _resolve(
    rule: Rule, step: int | None, num_steps: int | None, sigma: float | None, fixed: bool
) -> tuple[Rule, list[tuple[str, int]]]:
    """The rule of a step without its zero weights, and the passes that are saved so far, by reason."""
    names = rule.conditions
    if (step is None) != (num_steps is None):
        raise ValueError("step, num_steps: give both or neither")
    resolved = rule
    if step is not None and num_steps is not None:
        resolved = resolved.at(step, num_steps, sigma=sigma)
    elif resolved.scheduled:
        raise ValueError("step: the rule has schedules, so the call needs step= and num_steps=")
    saved_by = [("stock", len(rule.stands_for))] if rule.stands_for else []
    if gone := len(names) - len(resolved.conditions):
        saved_by.append(("cached", gone))
    if not fixed:
        full = len(resolved.conditions)
        scheduled = resolved is not rule
        resolved = resolved.simplify()
        if gone := full - len(resolved.conditions):
            saved_by.append(("schedule" if scheduled else "weight", gone))
    return resolved, saved_by


def _shared(resolved: Rule, saved_by: list[tuple[str, int]], first: Mapping[str, str], fixed: bool) -> PassPlan:
    """The plan where predictions share passes: ``first`` has for each the one whose pass it takes."""
    before = len(resolved.conditions)
    if not fixed and any(name != source for name, source in first.items()):
        resolved = _merge(resolved, first)
    sources = tuple((name, first[name]) for name in resolved.conditions)
    passes = tuple(dict.fromkeys(source for _, source in sources))
    if gone := before - len(passes):
        saved_by = [*saved_by, ("shared", gone)]
    return PassPlan(resolved, passes, sources, tuple(saved_by))


class Planner:
    """:func:`plan` of one rule, call after call: what a step has been resolved to is kept.

    Args:
        rule: the rule to guide by.

    Raises:
        TypeError: if it is none.
    """

    KEPT = 4096
    """Plans that are kept; a run has one for each step."""

    def __init__(self, rule: Rule) -> None:
        if not isinstance(rule, Rule):
            raise TypeError(f"rule: expected a fastcfg rule, got {type(rule).__name__}")
        self.rule = rule
        # Worked out now for torch.compile, which can't trace the making of a rule.
        constant = not rule.scheduled
        self._constant = tuple(_resolve(rule, None, None, None, f) for f in (False, True)) if constant else None
        self._resolved: dict[Any, tuple[Rule, list[tuple[str, int]]]] = {}
        self._plans: dict[Any, PassPlan] = {}

    def plan(
        self,
        conditions: Conditions,
        step: int | None = None,
        num_steps: int | None = None,
        *,
        sigma: float | None = None,
        fixed: bool = False,
    ) -> PassPlan:
        """See :func:`plan`."""
        check_conditions(self.rule, conditions)
        key: Any
        if self._constant is not None:
            if (step is None) != (num_steps is None):
                raise ValueError("step, num_steps: give both or neither")
            if step is not None and num_steps is not None:
                check_step(step, num_steps)
            key = fixed
            resolved, saved_by = self._constant[1 if fixed else 0]
        elif isinstance(sigma, Tensor) or torch.compiler.is_compiling():
            return plan(self.rule, conditions, step, num_steps, sigma=sigma, fixed=fixed)
        else:
            key = (step, num_steps, sigma, fixed)
            if key not in self._resolved:
                if len(self._resolved) >= self.KEPT:
                    self._resolved.clear()
                    self._plans.clear()
                self._resolved[key] = _resolve(self.rule, step, num_steps, sigma, fixed)
            resolved, saved_by = self._resolved[key]
        first = _first_of_same(resolved.conditions, conditions)
        if torch.compiler.is_compiling():
            return _shared(resolved, saved_by, first, fixed)
        whole = (key, *first.values())
        if (planned := self._plans.get(whole)) is None:
            planned = self._plans[whole] = _shared(resolved, saved_by, first, fixed)
        return planned


def _first_of_same(names: Sequence[str], conditions: Conditions | None) -> dict[str, str]:
    """For each name the first one under the same condition."""
    first: dict[str, str] = {}
    for name in names:
        own = name
        for other, source in first.items():
            if other == source and conditions is not None and same_condition(conditions[other], conditions[name]):
                own = other
                break
        first[name] = own
    return first


def _merge(rule: Rule, first: Mapping[str, str]) -> Rule:
    """The weights of predictions that are one added up, where the rule is a weighted sum of known weights."""
    basis = rule.basis_weights()
    if basis is None:
        return rule
    (base, whole), *deltas = basis.items()
    weights: dict[str, list[float]] = {first[name]: [] for name in rule.conditions}
    weights[first[base]].append(whole)
    for name, weight in deltas:
        if first[name] != first[base]:  # Else the delta is zero.
            weights[first[name]].append(weight)
            weights[first[base]].append(-weight)
    total = {name: math.fsum(parts) for name, parts in weights.items()}
    left = tuple((name, weight) for name, weight in total.items() if weight != 0)
    return Linear(left) if left else rule


@dataclass(frozen=True)
class RunCost:
    """Cost of a sampler's run in passes of the model.

    Attributes:
        passes: passes at each step.
        flops_per_pass: floating-point operations of one pass of the batch, or None.
    """

    passes: tuple[int, ...]
    flops_per_pass: float | None = None

    @property
    def nfe(self) -> int:
        """Passes of the whole run (number of function evaluations)."""
        return sum(self.passes)

    @property
    def flops(self) -> float | None:
        """Passes x FLOPs, or None without ``flops_per_pass``. The combine itself is left out."""
        return None if self.flops_per_pass is None else self.nfe * self.flops_per_pass

    @property
    def ratio(self) -> float:
        """Cost relative to the same steps unguided: 2 for CFG at every step, n + 1 for n conditions."""
        return self.nfe / len(self.passes)


def _gated(plans: Sequence[PassPlan], rule: Rule, gate: Gate | None) -> list[PassPlan]:
    """The plans of a run's steps without the passes that a gate leaves out by the steps alone."""
    if gate is None:
        return list(plans)
    last: dict[str, int] = {}
    done = []
    for step, planned in enumerate(plans):
        main = dict(planned.sources).get(main_condition(rule.conditions))
        sides = [name for name in planned.passes if name != main] if main is not None else []
        kept = {name for name in sides if name in last and not gate.due(step, len(plans), last[name])}
        last |= {name: step for name in sides if name not in kept}
        done.append(replace(planned, passes=tuple(name for name in planned.passes if name not in kept)))
    return done


def run_cost(
    rule: Rule,
    num_steps: int,
    *,
    gate: Gate | None = None,
    conditions: Conditions | None = None,
    sigmas: Sequence[float] | None = None,
    flops_per_pass: float | None = None,
) -> RunCost:
    """The passes of every step of a run, by :func:`plan`.

    Args:
        num_steps: steps of the run; a second-order sampler calls the model more often than it steps.
        gate: when passes are left out, by the steps alone: what a gate measures is known in a run only.
        conditions: as for :func:`plan`, where some may be the same.
        sigmas: noise level of each step, for schedules that run on it.
        flops_per_pass: floating-point operations of one pass of the batch.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps: expected a positive integer, got {num_steps!r}")
    if sigmas is not None and len(sigmas) < num_steps:
        raise ValueError(f"sigmas: expected a noise level for each of {num_steps} steps, got {len(sigmas)}")
    if flops_per_pass is not None and not flops_per_pass > 0:
        raise ValueError(f"flops_per_pass: expected a number above zero, got {flops_per_pass}")
    levels = [None] * num_steps if sigmas is None else sigmas
    plain, gate = gate_for(rule, gate)
    if gate is not None and gate.measures:
        raise ValueError("gate: what it measures decides how many passes run; run it, and read the denoiser's report()")
    plans = [plan(plain, conditions, i, num_steps, sigma=levels[i]) for i in range(num_steps)]
    return RunCost(tuple(planned.count for planned in _gated(plans, plain, gate)), flops_per_pass)
