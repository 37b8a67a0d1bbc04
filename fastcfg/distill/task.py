"""Tasks of distillation: a guided teacher, its process, and what it denoises."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.conditions import Condition, Conditions
from ..core.state import State
from ..denoiser import GuidedDenoiser
from ..files import tensors_digest
from ..rules import Rule
from ..schedules import Schedule
from .families import Family, Network, family_of
from .process import level_at, prediction_at

__all__ = ["Task", "arguments_of", "by_row", "draw_scales", "fingerprint"]


def arguments_of(condition: Mapping[str, Any] | Condition) -> dict[str, Any]:
    """The network's keyword arguments of a condition."""
    return dict(condition.kwargs if isinstance(condition, Condition) else condition)


def by_row(arguments: Mapping[str, Any], count: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A network's arguments in two: tensors with a row for each of ``count`` samples, and what all of them share."""
    rows = {
        name: value
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.dim() and value.shape[0] == count
    }
    return rows, {name: value for name, value in arguments.items() if name not in rows}


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's weights: their names, dtypes, shapes and bytes."""
    return tensors_digest(network.state_dict())


@dataclass(frozen=True)
class Task:
    """A teacher, and what it is given to denoise.

    Args:
        teacher: the guided denoiser; its model is an ``nn.Module`` or a :class:`Network`.
        scheduler: of diffusers, variance preserving or flow matching, or one with the same methods. A copy of it runs
            the trajectories.
        noise: ``noise(count, generator)``: where trajectories begin, ``[count, ...]`` on the teacher's device, in its
            dtype.
        conditions: ``conditions(count, generator)``: the network's arguments for each of the rule's predictions, with
            dim 0 of ``count``. No dropout: the student learns the guided prediction of real conditions.
        data: ``data(count, generator)``: clean samples and their conditions, for distillation on data.
        condition: which of the predictions' conditions the student gets; the others become part of it.
        parameter: the rule's parameter that the student takes as its scale.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    teacher: GuidedDenoiser
    scheduler: Any
    noise: Callable[[int, torch.Generator], Tensor]
    conditions: Callable[[int, torch.Generator], Conditions]
    data: Callable[[int, torch.Generator], tuple[Tensor, Conditions]] | None = None
    condition: str = "cond"
    parameter: str = "scale"

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, GuidedDenoiser):
            raise TypeError(f"teacher: expected a GuidedDenoiser, got {type(self.teacher).__name__}")
        rule = self.teacher.rule
        if self.condition not in rule.conditions:
            raise ValueError(f"condition: expected one of {list(rule.conditions)}, got {self.condition!r}")
        if self.parameter not in rule.lowered.params:
            raise ValueError(
                f"parameter: {type(rule).__name__} has no parameter {self.parameter!r}; "
                f"it has {sorted(rule.lowered.params)}"
            )
        _ = self.network

    @property
    def network(self) -> nn.Module:
        """The teacher's network."""
        model = self.teacher.model
        network = model.network if isinstance(model, Network) else model
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"teacher: expected a model that is an nn.Module or a Network, got {type(network).__name__}"
            )
        return network

    @property
    def family(self) -> Family:
        """The family of the teacher's network."""
        model = self.teacher.model
        return model.family if isinstance(model, Network) else family_of(self.network)

    @property
    def stateful(self) -> bool:
        """Return whether the rule remembers earlier steps, so that it has targets on trajectories only."""
        lowered = self.teacher.rule.lowered
        return bool(lowered.extras or lowered.updates)

    def times(self, num_steps: int) -> list[float]:
        """The sampler's times, noisiest first."""
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_steps)
        return [float(t) for t in scheduler.timesteps]

    def values(self, scale: Tensor, step: int, num_steps: int, times: list[float]) -> Tensor:
        """The rule's parameter at a step, for student scales ``[B]``.

        A number stands for itself. Of a schedule, the student's scale is the strongest value: the guidance of the
        others shrinks and grows with it, and scale 1 is no guidance at any step. With ``base="cond"`` the rule takes
        ``w = s - 1``.
        """
        rule = self.teacher.rule
        inner = rule
        while isinstance(getattr(inner, "rule", None), Rule):  # Modifiers hold the rule that they are around.
            inner = inner.rule  # type: ignore[attr-defined]
        neutral = 0.0 if getattr(inner, "base", "uncond") == "cond" else 1.0
        planned = rule.lowered.params[self.parameter]
        strength = scale - 1.0
        if isinstance(planned, Schedule):
            course = [
                planned.at(k, num_steps, sigma=level_at(self.scheduler, t)) - neutral for k, t in enumerate(times)
            ]
            peak = max(course, key=abs)
            strength = strength * (course[step] / peak if peak else 0.0)
        return neutral + strength

    @torch.no_grad()
    def target(
        self,
        x: Tensor,
        t: float | Tensor,
        conditions: Conditions,
        scale: Tensor,
        *,
        step: int,
        num_steps: int,
        times: list[float],
        state: State | None = None,
    ) -> Tensor:
        """The teacher's guided prediction of a step for student scales ``[B]``, through its fused guidance."""
        rule = self.teacher.rule
        space: dict[str, Any] = {}
        if rule.lowered.domain is not None:
            space["prediction"] = prediction_at(self.scheduler, times[step])
        return self.teacher(
            x,
            t,
            conditions=conditions,
            step=step,
            num_steps=num_steps,
            sigma=level_at(self.scheduler, times[step]),
            params={self.parameter: self.values(scale, step, num_steps, times)},
            state=state,
            **space,
        )


def draw_scales(
    count: int, low: float, high: float, generator: torch.Generator, *, log: bool = False, exact_one: float = 0.1
) -> Tensor:
    """Guidance scales ``[count]``, uniform in ``[low, high]`` or in its logarithm; a share is exactly 1."""
    draws = torch.rand(2, count, generator=generator)
    if log:
        scales = torch.exp(math.log(low) + draws[0] * (math.log(high) - math.log(low)))
    else:
        scales = low + draws[0] * (high - low)
    return scales.masked_fill(draws[1] < exact_one, 1.0)
