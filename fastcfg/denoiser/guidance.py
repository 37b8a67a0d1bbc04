"""What a guided step needs and what becomes of it: its passes, their guidance, the gate, the count."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from fastcfg_kernels.backends.torch.functional import Merge
from torch import Tensor

from ..core.conditions import Conditions
from ..core.guide import guide
from ..core.state import State
from ..core.step import guide_step
from ..rules import Rule
from ..rules.cached import gate_of
from ..samplers.step import Step
from ..telemetry.recorder import Mark, Telemetry
from .channels import GuidedChannels
from .gate import Gate, measure_delta
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
        telemetry: Telemetry | None = None,
    ) -> None:
        if telemetry is not None and not isinstance(telemetry, Telemetry):
            raise TypeError(f"telemetry: expected a fastcfg.telemetry.Telemetry, got {type(telemetry).__name__}")
        self.model = model
        self.backend = backend
        self.shards = shards
        self.telemetry = telemetry
        self._take = take
        self._wait = wait
        self._planner = Planner(rule)
        self._gate = None if gate_of(rule) is None else Gate(rule, wait)
        self._channels = channels
        if channels is not None and channels.rest is not None and channels.rest not in rule.conditions:
            raise ValueError(f"rest: expected one of {list(rule.conditions)}, got {channels.rest!r}")
        self._report = PassReport()

    @property
    def rule(self) -> Rule:
        """The guidance."""
        return self._planner.rule

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
    ) -> PassPlan:
        """The passes of a step, as a call with the same arguments would run them; nothing is run or counted."""
        phase = self._gate.phase(state, step) if self._gate and state is not None and step is not None else "auto"
        fixed = params is not None and len(params) > 0  # ``bool`` of a mapping can't be compiled by torch 2.10.
        return self._planner.plan(conditions, step, num_steps, sigma=sigma, fixed=fixed, phase=phase)

    def passes(self, planned: PassPlan, conditions: Conditions) -> list[Pass]:
        """The passes of a plan, for an :class:`Executor`."""
        return passes_of(planned.passes, conditions, self.model, self._take)

    def count(self, planned: PassPlan) -> None:
        """Count the passes of a plan as run."""
        self._report.count(len(planned.passes), planned.saved_by)
        if self.telemetry is not None:
            self.telemetry.count_passes(len(planned.passes), planned.saved_by)

    def mark(self, step: int | Sequence[int] | None, ids: Sequence[Hashable] | None = None) -> Mark | None:
        """What telemetry is told of a call: its step, or one for each sample, and whose the samples are."""
        if self.telemetry is None or torch.compiler.is_compiling():
            return None
        return self.telemetry.at(step, ids)

    def combine(
        self,
        planned: PassPlan,
        results: Mapping[str, Tensor],
        *,
        params: Mapping[str, Any] | None = None,
        state: State | None = None,
        out: Tensor | None = None,
        mark: Mark | None = None,
        **space: Any,
    ) -> Tensor:
        """The guidance of the passes' results: what a call does once they are run."""

        def guided(predictions: Mapping[str, Tensor], to: Tensor | None) -> Tensor:
            if planned.unguided:
                only = predictions[planned.passes[0]]
                return only if to is None else to.copy_(only)
            named: dict[str, Any] = planned.predictions(predictions)
            return guide(
                planned.rule,
                params=params,
                backend=self.backend,
                state=state,
                out=to,
                shards=self.shards,
                telemetry=mark,
                **space,
                **named,
            )

        return guided(results, out) if self._channels is None else self._channels.guide(planned, results, guided, out)

    def measures(self, planned: PassPlan) -> bool:
        """Whether the gate measures the delta of a plan's step."""
        return self._gate is not None and self._gate.measures and "delta" in planned.rule.lowered.updates

    def measure(self, planned: PassPlan, results: Mapping[str, Tensor], before: Tensor | None, state: State) -> Tensor:
        """How far and how long the delta in the state is, ``[2, B]``; see :func:`measure_delta`."""
        cond, new = planned.predictions(results)["cond"], state["delta"]
        if self._channels is not None:
            cond = self._channels.of(cond)
        return measure_delta(new, new if before is None else before, cond, self.shards)

    def note_refresh(self, planned: PassPlan, state: State, step: int | None, measured: Tensor | None) -> None:
        """Tell the gate that a step is done."""
        if self._gate is not None and step is not None and "delta" in planned.rule.lowered.updates:
            self._gate.refreshed(state, step, measured)

    def combine_step(
        self, planned: PassPlan, results: Mapping[str, Tensor], step: Step, *, x: Tensor, **arguments: Any
    ) -> Tensor:
        """The guidance of the passes' results and the solver's step: what :meth:`step` does once they are run.

        Args:
            arguments: of :func:`fastcfg.guide_step`.
        """
        if self._channels is not None:
            results = {name: self._channels.of(result) for name, result in results.items()}
        named: dict[str, Any] = planned.predictions(results)
        arguments |= {"backend": self.backend, "shards": self.shards, "telemetry": self.mark(step.index)}
        return guide_step(planned.rule, step, x=x, **arguments, **named)
