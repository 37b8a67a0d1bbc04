"""Which passes of the model a guided step needs, and what a run costs.

A rule names the predictions it combines. Fewer passes may do: a prediction whose weight is zero is not needed, and two
predictions under the same condition are one. The plan is made from the rule's numbers and from the identity of what
the conditions hold, never from values on a device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .rules import Linear, Rule

__all__ = ["PassPlan", "RunCost", "plan", "run_cost", "same_condition"]

Conditions = Mapping[str, Mapping[str, Any]]


def same_condition(a: Any, b: Any) -> bool:
    """Whether two conditions are the same without looking at tensor values.

    Tensors are the same if they are one object or one view of the same memory (address, shape, strides, dtype); two
    copies of equal values are not. Mappings, lists and tuples are compared item by item, other values by ``==``.
    """
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and _same_memory(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_condition(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_condition, a, b))
    try:
        return type(a) is type(b) and bool(a == b)
    except (TypeError, ValueError, RuntimeError):  # Arrays, whose comparison is no single truth value.
        return False


def _same_memory(a: Tensor, b: Tensor) -> bool:
    if torch.compiler.is_compiling() or a.layout is not torch.strided or b.layout is not torch.strided:
        return False  # No address to compare.
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.stride() != b.stride():
        return False
    try:
        return a.numel() > 0 and a.data_ptr() == b.data_ptr() != 0
    except RuntimeError:  # A fake or wrapped tensor without memory of its own.
        return False


@dataclass(frozen=True)
class PassPlan:
    """The passes of one step.

    Attributes:
        rule: the rule to guide by, its schedules resolved and its zero weights gone.
        passes: conditions to run the model under, in batch order.
        sources: pairs (prediction that :attr:`rule` takes, pass that gives it); several may share one.
        saved: passes that the full rule would have run besides.
    """

    rule: Rule
    passes: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]
    saved: int

    @property
    def count(self) -> int:
        """How many passes."""
        return len(self.passes)

    @property
    def unguided(self) -> bool:
        """Whether the result is the only pass itself, so that there is nothing to combine."""
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
            See :func:`same_condition` for when two are the same.
        step, num_steps, sigma: where the sampler is; needed by a rule with schedules.
        fixed: keep the rule's formula and all its predictions, because parameters are overridden at the call; passes
            are still shared.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a fastcfg rule, got {type(rule).__name__}")
    names = rule.conditions
    if conditions is not None:
        missing = [name for name in names if name not in conditions]
        extra = [name for name in conditions if name not in names]
        if missing or extra:
            raise ValueError(
                f"conditions: {type(rule).__name__} takes {list(names)}; missing {missing}, unknown {extra}"
            )
    if (step is None) != (num_steps is None):
        raise ValueError("step, num_steps: give both or neither")
    resolved = rule
    if step is not None and num_steps is not None:
        resolved = rule.at(step, num_steps, sigma=sigma)
    elif rule.scheduled:
        raise ValueError("step: the rule has schedules, so the call needs step= and num_steps=")
    if not fixed:
        resolved = resolved.simplify()
    first = _first_of_same(resolved.conditions, conditions)
    if not fixed and any(name != source for name, source in first.items()):
        resolved = _merge(resolved, first)
    sources = tuple((name, first[name]) for name in resolved.conditions)
    passes = tuple(dict.fromkeys(source for _, source in sources))
    return PassPlan(resolved, passes, sources, len(names) - len(passes))


def _first_of_same(names: Sequence[str], conditions: Conditions | None) -> dict[str, str]:
    """For each name the first one under the same condition."""
    first: dict[str, str] = {}
    for name in names:
        earlier = (n for n, source in first.items() if n == source)
        same = (n for n in earlier if conditions is not None and same_condition(conditions[n], conditions[name]))
        first[name] = next(same, name)
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
    """What a run of a sampler costs in passes of the model.

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
        """passes x FLOPs, or None without ``flops_per_pass``. The combine itself is left out."""
        return None if self.flops_per_pass is None else self.nfe * self.flops_per_pass

    @property
    def ratio(self) -> float:
        """Cost relative to the same steps unguided: 2 for CFG at every step, n + 1 for n conditions."""
        return self.nfe / len(self.passes)


def run_cost(
    rule: Rule,
    num_steps: int,
    *,
    conditions: Conditions | None = None,
    sigmas: Sequence[float] | None = None,
    flops_per_pass: float | None = None,
) -> RunCost:
    """The passes of every step of a run, by :func:`plan`.

    Args:
        num_steps: steps of the run; a second-order sampler calls the model more often than it steps.
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
    passes = tuple(plan(rule, conditions, i, num_steps, sigma=levels[i]).count for i in range(num_steps))
    return RunCost(passes, flops_per_pass)
