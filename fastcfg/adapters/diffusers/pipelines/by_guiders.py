"""A rule in a pipeline whose guidance is a guider component: classic ones (HunyuanVideo-1.5) and modular ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ....core.conditions import Condition
from ....core.state import State
from ....rules import Rule
from ..fuse import fuse
from ..guiders.rules import RuleGuidance

__all__ = ["GuiderRun", "guided_by_guiders"]


class GuiderRun:
    """The run that :func:`guided` yields for a pipeline with guiders; of several the one used last tells.

    Attributes:
        guiders: by component.
    """

    def __init__(self, guiders: Mapping[str, RuleGuidance]) -> None:
        self.guiders = guiders

    @property
    def _used(self) -> RuleGuidance:
        return max(self.guiders.values(), key=lambda guider: guider.passes_run)

    @property
    def state(self) -> State:
        """Return what the rule carries from step to step."""
        return self._used.state

    @property
    def step(self) -> int:
        """Steps taken in this run."""
        at = self._used._at()
        return 0 if at is None else at[0] + 1

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        at = self._used._at()
        return 0 if at is None else at[1]

    @property
    def passes_run(self) -> int:
        """Passes that were run."""
        return sum(guider.passes_run for guider in self.guiders.values())

    @property
    def passes_saved(self) -> int:
        """Passes that the rule takes and that its steps did not need."""
        return sum(guider.passes_saved for guider in self.guiders.values())


def _inputs(name: str, condition: Mapping[str, Any] | Condition) -> dict[str, Any]:
    if not isinstance(condition, Condition):
        return dict(condition)
    if condition.model is not None or condition.context is not None:
        raise ValueError(f"conditions: {name!r} has a model or a context; a guider's passes take inputs alone")
    return dict(condition.kwargs)


@contextmanager
def guided_by_guiders(
    pipe: Any,
    rule: Rule | Mapping[str, Rule],
    conditions: Mapping[str, Mapping[str, Any] | Condition],
    backend: str | None,
    frame_scales: Tensor | Sequence[float] | None,
    options: Mapping[str, Any],
) -> Iterator[GuiderRun]:
    """A pipeline whose guiders are by a rule inside the ``with`` block; arguments as for :func:`guided`.

    Args:
        options: other arguments of :class:`.RuleGuidance`.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a fastcfg rule for a pipeline with a guider, got {type(rule).__name__}")
    scales = None if frame_scales is None else torch.as_tensor(frame_scales).tolist()
    unknown = sorted(set(conditions) - set(rule.conditions))
    if unknown:
        raise ValueError(f"conditions: {', '.join(unknown)}: no prediction that the rule takes")
    with fuse(pipe, rule=rule, frame_scales=scales, **options) as report:
        guiders: dict[str, RuleGuidance] = {}
        for name, (own, made) in report.swapped.items():
            assert isinstance(made, RuleGuidance)
            made.inputs = {name: _inputs(name, condition) for name, condition in conditions.items()}
            made.backend = backend
            if not own._enabled:
                made.disable()
            guiders[name] = made
        yield GuiderRun(guiders)
