"""Schedules of a parameter over the steps of a sampler.

A schedule is a frozen value that any numeric parameter of a rule takes in place of a number; ``rule.at(step,
num_steps)`` resolves it. The first step gives exactly the start and the last exactly the end; a single step gives
the start.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["Constant", "Cosine", "Interval", "Linear", "Schedule", "Step"]


def _number(owner: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{owner}: {name}: expected a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{owner}: {name}: expected a finite number, got {value}")
    return float(value)


def check_step(step: int, num_steps: int) -> None:
    """Raise unless ``0 <= step < num_steps``, naming the argument."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps: expected a positive integer, got {num_steps!r}")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < num_steps:
        raise ValueError(f"step: expected an integer in 0 ... {num_steps - 1}, got {step!r}")


@dataclass(frozen=True)
class Schedule:
    """A value for each step. Subclasses are frozen dataclasses of numbers and define :meth:`at`."""

    kinds: ClassVar[dict[str, type[Schedule]]] = {}

    def __init_subclass__(cls) -> None:
        Schedule.kinds[cls.__name__] = cls

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _number(type(self).__name__, field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def at(self, step: int, num_steps: int) -> float:
        """The value at ``step`` (from 0) of ``num_steps``."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """A JSON object: the kind and its fields."""
        return {"schedule": type(self).__name__, **dataclasses.asdict(self)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Schedule:
        """The schedule that :meth:`to_dict` described.

        Raises:
            ValueError: for an unknown kind or field.
        """
        fields = dict(data)
        kind = fields.pop("schedule", None)
        if kind not in Schedule.kinds:
            raise ValueError(f"schedule: expected one of {sorted(Schedule.kinds)}, got {kind!r}")
        try:
            return Schedule.kinds[kind](**fields)
        except TypeError as error:
            raise ValueError(f"schedule: {kind}: {error}") from None


def _fraction(step: int, num_steps: int) -> float:
    check_step(step, num_steps)
    return step / (num_steps - 1) if num_steps > 1 else 0.0


def _between(start: float, end: float, share: float) -> float:
    """``start`` at 0 and ``end`` at 1, both exactly."""
    return end if share == 1 else start + (end - start) * share


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every step."""

    value: float

    def at(self, step: int, num_steps: int) -> float:
        check_step(step, num_steps)
        return self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """From ``start`` at the first step to ``end`` at the last, in equal steps; either way up or down."""

    start: float
    end: float

    def at(self, step: int, num_steps: int) -> float:
        return _between(self.start, self.end, _fraction(step, num_steps))


@dataclass(frozen=True)
class Cosine(Schedule):
    """From ``start`` to ``end`` along half a cosine: slow at both ends, fastest in the middle."""

    start: float
    end: float

    def at(self, step: int, num_steps: int) -> float:
        share = _fraction(step, num_steps)
        return _between(self.start, self.end, share if share == 1 else (1 - math.cos(math.pi * share)) / 2)


@dataclass(frozen=True)
class Step(Schedule):
    """``high`` while the remaining share of the run, ``1 - step/(num_steps-1)``, is above ``switch``, then ``low``.

    The comparison is strict.
    """

    high: float
    low: float
    switch: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.switch <= 1:
            raise ValueError(f"Step: switch: expected a share in 0 ... 1, got {self.switch}")

    def at(self, step: int, num_steps: int) -> float:
        return self.high if 1 - _fraction(step, num_steps) > self.switch else self.low


@dataclass(frozen=True)
class Interval(Schedule):
    """``value`` while ``int(start*num_steps) <= step < int(stop*num_steps)``, else ``outside``.

    With ``outside=1`` a CFG scale turns guidance off there, and the denoiser runs one pass (2404.07724). The window
    is that of diffusers' guiders.
    """

    value: float
    start: float = 0.0
    stop: float = 1.0
    outside: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(
                f"Interval: start, stop: expected shares with 0 <= start < stop <= 1, got {self.start}, {self.stop}"
            )

    def at(self, step: int, num_steps: int) -> float:
        check_step(step, num_steps)
        inside = int(self.start * num_steps) <= step < int(self.stop * num_steps)
        return self.value if inside else self.outside
