"""A guided step: its passes, their guidance, the gate, the count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fastcfg_kernels.backends.torch.functional import Merge
from torch import Tensor

from ..core.conditions import Conditions
from ..core.guide import guide
from ..core.state import State
from ..core.step import guide_step
from ..prediction import Prediction
from ..rules import Rule
from ..samplers.step import Step
from .channels import GuidedChannels
from .gates import Gate, gate_for
from .gating import Gating, Origin
from .passes import Pass, passes_of
from .planner import PassPlan, Planner
from .report import PassReport

__all__ = ["Guidance"]


class Guidance:
    """Everything about a guided step but the running of its passes; :class:`GuidedDenoiser` adds that.

    Args:
        take: from what a model returns to the prediction; wait: of the gate. The others are those of
            :class:`GuidedDenoiser`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        rule: Rule,
        *,
        backend: str | None,
        take: Callable[[Any], Tensor],
        channels: GuidedChannels | None,
        shards: Merge | None,
        wait: bool,
        gate: Gate | None = None,
    ) -> None:
        self.model = model
        self.backend = backend
        self.shards = shards
        self._take = take
        self._wait = wait
        self._rule, self._given_gate = rule, gate
        if not isinstance(rule, Rule):
            raise TypeError(f"rule: expected a fastcfg rule, got {type(rule).__name__}")
        plain, gate = gate_for(rule, gate)
        self._planner = Planner(plain)
        self._gating = None if gate is None else Gating(plain.conditions, gate, wait=wait, merge=shards)
        self._channels = channels
        if channels is not None and channels.rest is not None and channels.rest not in rule.conditions:
            raise ValueError(f"rest: expected one of {list(rule.conditions)}, got {channels.rest!r}")
        self._report = PassReport()

    @property
    def rule(self) -> Rule:
        """The guidance."""
        return self._rule

    @property
    def gate(self) -> Gate | None:
        """When passes are left out: what was given, or what a :class:`fastcfg.GatedCFG` in the rule says."""
        return None if self._gating is None else self._gating.gate

    @property
    def passes_run(self) -> int:
        """Passes of one batch of samples that were run."""
        return self._report.run

    @property
    def passes_saved(self) -> int:
        """Passes that the full guidance would have run besides; :meth:`report` says why they were not."""
        return self._report.saved

    def report(self) -> PassReport:
        """The passes run and saved so far, by reason. Calls inside of a ``torch.compile`` are not counted."""
        return self._report.copy()

    def plan(
        self,
        conditions: Conditions,
        step: int | None = None,
        num_steps: int | None = None,
        *,
        sigma: float | None = None,
        params: Mapping[str, Any] | None = None,
        state: State | None = None,
        x: Tensor | None = None,
        fixed: bool = False,
    ) -> PassPlan:
        """The passes of a step, as a call with the same arguments would run them; nothing is run or counted.

        Args:
            fixed: keep passes whose weight is zero, for a call that weighs by more than its parameters.
        """
        fixed = fixed or (
            params is not None and len(params) > 0
        )  # ``bool`` of a mapping can't be compiled by torch 2.10.
        planned = self._planner.plan(conditions, step, num_steps, sigma=sigma, fixed=fixed)
        if self._gating is None:
            return planned
        return self._gating.plan(planned, state, step, num_steps, self._origin(conditions, x))

    def _origin(self, conditions: Conditions, x: Tensor | None) -> Origin:
        return Origin(self.model, None if x is None else x.shape, conditions)

    def passes(self, planned: PassPlan, conditions: Conditions) -> list[Pass]:
        """The passes of a plan, for an :class:`Executor`."""
        return passes_of(planned.passes, conditions, self.model, self._take)

    def count(self, planned: PassPlan) -> None:
        """Count the passes of a plan as run."""
        self._report.count(len(planned.passes), planned.saved_by)

    def combine(
        self,
        planned: PassPlan,
        results: Mapping[str, Tensor],
        *,
        params: Mapping[str, Any] | None = None,
        state: State | None = None,
        out: Tensor | None = None,
        stats: Sequence[str] = (),
        stats_out: Tensor | None = None,
        **space: Any,
    ) -> Tensor:
        """The guidance of the passes' results: what a call does once they are run."""
        results = self.recall(planned, results, state, space.get("prediction"))
        space |= _stats(planned, stats, stats_out)

        def guided(predictions: Mapping[str, Tensor], to: Tensor | None) -> Tensor:
            if planned.unguided:
                only = predictions[planned.passes[0]]
                return only if to is None else to.copy_(only)
            named: dict[str, Any] = planned.predictions(predictions)
            if planned.rule.lowered.domain is None:
                space.pop("x", None), space.pop("prediction", None)
            return guide(
                planned.rule,
                params=params,
                backend=self.backend,
                state=state,
                out=to,
                shards=self.shards,
                **space,
                **named,
            )

        return guided(results, out) if self._channels is None else self._channels.guide(planned, results, guided, out)

    def recall(
        self,
        planned: PassPlan,
        results: Mapping[str, Tensor],
        state: State | None,
        level: Prediction | None,
        weights: Mapping[str, Sequence[Any]] | None = None,
    ) -> dict[str, Tensor]:
        """The results of a step's passes and what a gate has in place of the others; see :meth:`Gating.recall`."""
        if self._gating is None or not planned.recalled or planned.recalled[0][0] in results:
            return dict(results)
        heads = results
        if self._channels is not None:
            heads = {name: self._channels.of(result) for name, result in results.items()}
        return {**self._gating.recall(planned, heads, state, level, weights), **results}

    def memory(self, planned: PassPlan) -> tuple[list[str], list[str]]:
        """The tensors of a state that the gate reads and writes at a plan's step."""
        return ([], []) if self._gating is None else self._gating.names(planned)

    def remember(
        self, planned: PassPlan, results: Mapping[str, Tensor], state: State | None, level: Prediction | None
    ) -> Tensor | None:
        """Put the deltas of a step's fresh passes into the state; see :meth:`Gating.remember`."""
        if self._gating is None or state is None or not planned.main:
            return None
        if self._channels is not None:
            results = {name: self._channels.of(result) for name, result in results.items()}
        return self._gating.remember(planned, results, state, level)

    def note(
        self,
        planned: PassPlan,
        state: State | None,
        step: int | None,
        measured: Tensor | None,
        conditions: Conditions,
        x: Tensor,
    ) -> None:
        """Tell the gate that a step is done."""
        if self._gating is not None and state is not None and step is not None:
            self._gating.note(planned, state, step, measured, self._origin(conditions, x))

    def combine_step(
        self,
        planned: PassPlan,
        results: Mapping[str, Tensor],
        step: Step,
        *,
        x: Tensor,
        stats: Sequence[str] = (),
        stats_out: Tensor | None = None,
        **arguments: Any,
    ) -> Tensor:
        """The guidance of the passes' results and the solver's step: what :meth:`step` does once they are run.

        Args:
            arguments: of :func:`fastcfg.guide_step`.
        """
        results = self.recall(planned, results, arguments.get("state"), step.level)
        if self._channels is not None:
            results = {name: self._channels.of(result) for name, result in results.items()}
        named: dict[str, Any] = planned.predictions(results)
        if planned.unguided:
            arguments["params"] = None  # Of a rule that a gate has ended.
        arguments |= {"backend": self.backend, "shards": self.shards, **_stats(planned, stats, stats_out)}
        return guide_step(planned.rule, step, x=x, **arguments, **named)


def _stats(planned: PassPlan, stats: Sequence[str], stats_out: Tensor | None) -> dict[str, Any]:
    """The stats of a step's launch; where one prediction is all there is, they are NaN and the launch has none."""
    if bool(stats) != (stats_out is not None):
        raise ValueError("stats, stats_out: expected both or none")
    if stats_out is None:
        return {}
    if planned.unguided or len(planned.rule.lowered.predictions) == 1:
        stats_out.fill_(torch.nan)
        return {}
    return {"stats": stats, "stats_out": stats_out}
