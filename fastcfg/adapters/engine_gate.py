"""A gate in an engine whose pipelines run their branches in turn: where the run is, and what it remembers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..core.state import State
from ..denoiser import Gate
from ..denoiser.gating import Gating, Origin
from ..denoiser.planner import PassPlan
from ..rules import Linear

__all__ = ["EngineRun", "where"]

Prediction = Tensor | tuple[Tensor, ...]
_ANY = Linear((("cond", 1.0),))
_CONDITION = ("encoder_hidden", "embed", "pooled", "prompt", "text", "image_latents")


def where(scheduler: Any) -> tuple[int, int] | None:
    """A diffusers scheduler's step and their number; None where it does not say. Nothing is read from a device."""
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or not hasattr(scheduler, "step_index"):
        return None
    step = scheduler.step_index
    if step is None:
        step = getattr(scheduler, "begin_index", None) or 0
    return int(step), len(timesteps)


def _condition(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what of a branch's arguments is its condition, and not the latent or the time."""
    return {name: value for name, value in (given or {}).items() if any(part in name for part in _CONDITION)}


class EngineRun:
    """Memory of one pipeline's run: a state for each output of the model, and where the run is.

    A run is a scheduler's timesteps as they were set once. A call whose step is not beyond that of the last one runs
    every branch: it is of a run that the pipeline's scheduler does not tell, as where requests are batched.

    Attributes:
        states: by output of the model; ended: whether the step's result is the first branch's own.
    """

    def __init__(self) -> None:
        self._timesteps: Any = None
        self._last: int | None = None
        self.states: list[State] = []
        self.ended = False

    def begin(self, scheduler: Any) -> tuple[int, int] | None:
        """The step and their number; what was remembered of another run is forgotten."""
        at = where(scheduler)
        timesteps = getattr(scheduler, "timesteps", None)
        if at is None or timesteps is not self._timesteps or (self._last is not None and at[0] < self._last):
            self._timesteps, self._last, self.states = timesteps, None, []
        return at

    def state(self, output: int) -> State:
        """The state of an output of the model."""
        while len(self.states) <= output:
            self.states.append(State())
        return self.states[output]

    def predict(
        self,
        gate: Gate,
        names: Sequence[str],
        branches: Mapping[str, Mapping[str, Any] | None],
        predict: Callable[[Mapping[str, Any]], tuple[Tensor, ...]],
        scheduler: Any,
        model: Any,
    ) -> list[tuple[Tensor, ...]]:
        """The predictions of a step's branches, of which the gate leaves some out.

        Args:
            names: of the branches, ``cond`` first; branches: their arguments.
            predict: runs one; its outputs are a tuple.
            scheduler: the pipeline's; model: what predicts, one of several experts say.

        Raises:
            RuntimeError: where the scheduler does not say which step it is at.
        """
        at = self.begin(scheduler)
        if at is None:
            raise RuntimeError(f"gate: {type(scheduler).__name__} says no step (timesteps, step_index)")
        step, num_steps = at
        self.ended = False
        if step == self._last:
            return [predict(branches[name] or {}) for name in names]
        first = next((v for v in (branches[names[0]] or {}).values() if isinstance(v, Tensor) and v.dim() > 1), None)
        origin = Origin(
            model, None if first is None else first.shape, {name: _condition(branches[name]) for name in names}
        )
        gating, full = Gating(names, gate), PassPlan(_ANY, tuple(names), tuple((name, name) for name in names))
        plan = gating.plan(full, self.state(0), step, num_steps, origin)
        self.ended = plan.ended
        found = {name: predict(branches[name] or {}) for name in plan.passes}
        outputs: list[dict[str, Tensor]] = []
        for i in range(len(found[names[0]])):
            own = {name: parts[i] for name, parts in found.items()}
            measured = gating.remember(plan, own, self.state(i), None)
            every = gating.recall(plan, own, self.state(i), None)
            gating.note(plan, self.state(i), step, measured, origin)
            outputs.append({name: every.get(name, own[names[0]]) for name in names})
        self._last = step
        return [tuple(output[name] for output in outputs) for name in names]
