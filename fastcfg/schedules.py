"""Schedules of a parameter over a run of a sampler.

A schedule is a frozen value that any numeric parameter of a rule takes in place of a number; ``rule.at(step,
num_steps, sigma=…)`` resolves it. A curve (:class:`Ramp`, :class:`Cosine`, …) gives exactly its start at the first
step and exactly its end at the last; a single step gives the start. On other axes than the steps (time t/T, noise
level, log-SNR) the same curves run by :class:`OnAxis`. Both directions are offered, up and down: which one helps
depends on the model (2404.13040 finds increasing scales better than decreasing ones).
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from fastcfg_kernels.finite import finite_number

from .documents import checked

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Interval",
    "OnAxis",
    "Power",
    "Ramp",
    "Schedule",
    "SigmaInterval",
    "Step",
    "Values",
]

Axis = Literal["step", "t", "sigma", "logsnr"]

_FORMER_NAMES = {"Linear": "Ramp"}
"""Schedules by the names that they had before, which JSON may hold for good."""


def _number(owner: str, name: str, value: Any) -> float:
    return finite_number(f"{owner}: {name}", value)


def same_place(a: type, b: type) -> bool:
    """Return whether two classes are one definition, run again: of one name in one module."""
    return (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)


def check_step(step: int, num_steps: int) -> None:
    """Raise unless ``0 <= step < num_steps``, naming the argument."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps: expected a positive integer, got {num_steps!r}")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < num_steps:
        raise ValueError(f"step: expected an integer in 0 ... {num_steps - 1}, got {step!r}")


def _choice(owner: str, name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{owner}: {name}: expected one of {', '.join(known)}, got {value!r}")


def _noise_level(owner: str, sigma: Any) -> float:
    """A noise level as a host number; a tensor on a CPU counts, one on a device would have to be waited for."""
    if sigma is None:
        raise ValueError(f"sigma: {owner} runs on the noise level; give rule.at(step, num_steps, sigma=...)")
    device = getattr(sigma, "device", None)
    if device is not None:
        if device.type != "cpu":
            raise TypeError(f"sigma: expected a number, got a tensor on {device}, which would have to be waited for")
        if sigma.numel() != 1:
            raise ValueError(f"sigma: expected one number, got a tensor of shape {list(sigma.shape)}")
        sigma = sigma.item()
    value = _number(owner, "sigma", sigma)
    if value < 0:
        raise ValueError(f"sigma: expected a noise level of 0 or more, got {value}")
    return value


@dataclass(frozen=True)
class Schedule:
    """A value for each step. Subclasses are frozen dataclasses of numbers.

    A subclass defines :meth:`at`, or :meth:`value_at` where it is a curve over the run.
    """

    kinds: ClassVar[dict[str, type[Schedule]]] = {}
    choices: ClassVar[tuple[str, ...]] = ()
    """Fields that are no numbers: named choices and other schedules, which the subclass checks."""

    def __init_subclass__(cls) -> None:
        if (taken := Schedule.kinds.get(cls.__name__)) is not None and not same_place(taken, cls):
            raise ValueError(f"schedule: {cls.__name__!r} is the name of a schedule of {taken.__module__!r} already")
        Schedule.kinds[cls.__name__] = cls

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name not in self.choices:
                value = _number(type(self).__name__, field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, value)

    def value_at(self, progress: float) -> float:
        """The value of a curve at ``progress``: 0 at the beginning of the run, 1 at its end."""
        raise NotImplementedError(f"{type(self).__name__} is not a curve over the run")

    def at(self, step: int, num_steps: int, *, sigma: float | None = None) -> float:
        """The value at ``step`` (from 0) of ``num_steps``, whose noise level is ``sigma``.

        Args:
            sigma: noise-to-signal ratio of the step (``sqrt(1 - abar)/sqrt(abar)`` for a variance-preserving model),
                a number or a one-element CPU tensor. Only schedules on a noise axis need it.

        Raises:
            TypeError, ValueError: naming ``step``, ``num_steps`` or ``sigma``.
        """
        return self.value_at(_fraction(step, num_steps))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object: the kind and its fields."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        plain = {name: value.to_dict() if isinstance(value, Schedule) else value for name, value in fields}
        own = {} if type(self).__module__.startswith("fastcfg.") else {"module": type(self).__module__}
        return {"schedule": type(self).__name__, **own, **plain}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Schedule:
        """The schedule that :meth:`to_dict` described.

        Raises:
            ValueError: for an unknown kind or field.
        """
        fields = {
            key: checked(key, lambda v=v: Schedule.from_dict(v)) if isinstance(v, dict) and key != "schedule" else v  # type: ignore[misc]
            for key, v in data.items()
        }
        kind, module = fields.pop("schedule", None), fields.pop("module", None)
        kind = _FORMER_NAMES.get(kind, kind) if isinstance(kind, str) else kind
        if not isinstance(kind, str) or kind not in Schedule.kinds:
            if isinstance(module, str):
                raise ValueError(f"schedule: {kind!r} is one of the module {module!r}, which is to be imported first")
            raise ValueError(f"schedule: expected one of {sorted(Schedule.kinds)}, got {kind!r}")
        return checked(f"schedule: {kind}", lambda: Schedule.kinds[kind](**fields))


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

    def value_at(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Ramp(Schedule):
    """A line from ``start`` at the first step to ``end`` at the last, up or down."""

    start: float
    end: float

    def value_at(self, progress: float) -> float:
        return _between(self.start, self.end, progress)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from ``start`` to ``end``: slow at both ends, fastest in the middle."""

    start: float
    end: float

    def value_at(self, progress: float) -> float:
        return _between(self.start, self.end, progress if progress == 1 else (1 - math.cos(math.pi * progress)) / 2)


@dataclass(frozen=True)
class Exponential(Schedule):
    """Equal factors from ``start`` to ``end``: ``start * (end/start)**progress``. Both are above zero."""

    start: float
    end: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start <= 0 or self.end <= 0:
            raise ValueError(f"Exponential: start, end: expected numbers above zero, got {self.start}, {self.end}")

    def value_at(self, progress: float) -> float:
        return self.end if progress == 1 else float(self.start * (self.end / self.start) ** progress)


@dataclass(frozen=True)
class Power(Schedule):
    """``start + (end - start) * progress**exponent``: an exponent above 1 changes late, one below 1 early."""

    start: float
    end: float
    exponent: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exponent <= 0:
            raise ValueError(f"Power: exponent: expected a number above zero, got {self.exponent}")

    def value_at(self, progress: float) -> float:
        return _between(self.start, self.end, float(progress**self.exponent))


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

    def value_at(self, progress: float) -> float:
        return self.high if 1 - progress > self.switch else self.low


@dataclass(frozen=True)
class Values(Schedule):
    """A value for each step, listed: ``Values.of(fn, num_steps)`` holds what a function of the step gives."""

    values: tuple[float, ...]

    choices = ("values",)

    def __post_init__(self) -> None:
        if not isinstance(self.values, tuple | list) or not self.values:
            raise TypeError(f"Values: values: expected one or more numbers in a tuple, got {self.values!r}")
        numbers = tuple(_number("Values", f"values[{i}]", value) for i, value in enumerate(self.values))
        object.__setattr__(self, "values", numbers)

    @classmethod
    def of(cls, fn: Callable[[int, int], float], num_steps: int) -> Values:
        """``fn(step, num_steps)`` for each step."""
        return cls(tuple(fn(step, num_steps) for step in range(num_steps)))

    def at(self, step: int, num_steps: int, *, sigma: float | None = None) -> float:
        check_step(step, num_steps)
        if num_steps != len(self.values):
            raise ValueError(f"num_steps: the schedule lists {len(self.values)} steps, got {num_steps}")
        return self.values[step]


@dataclass(frozen=True)
class OnAxis(Schedule):
    """A curve whose progress is counted on another axis than the steps'.

    Args:
        curve: a curve, such as ``Ramp(10, 2)``.
        axis: ``"step"``: step/(num_steps-1), as without this. ``"t"``: 1 - t/T with t counted from T = num_steps down
            to 1, the form ``s_min + (s_max - s_min) t/T``, which does not reach its end (2.008 for 10 to 2 in 1,000
            steps). ``"sigma"``: by equal differences of the noise level from ``first`` to ``last``. ``"logsnr"``: by
            equal ratios of it, which are equal differences of log-SNR = -2 log sigma.
        first, last: noise levels (above zero on ``"logsnr"``) where the curve begins and ends; beyond them it holds
            its ends.
    """

    curve: Schedule
    axis: Axis = "t"
    first: float = 1.0
    last: float = 0.0

    choices = ("curve", "axis")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.curve, Schedule) or type(self.curve).value_at is Schedule.value_at:
            raise TypeError(f"OnAxis: curve: expected a curve such as Ramp(10, 2), got {self.curve!r}")
        _choice("OnAxis", "axis", self.axis, get_args(Axis))
        lowest = min(self.first, self.last)
        if self.axis in ("sigma", "logsnr") and (
            self.first == self.last or lowest < 0 or (lowest == 0 and self.axis == "logsnr")
        ):
            least = "above zero" if self.axis == "logsnr" else "of 0 or more"
            raise ValueError(
                f"OnAxis: first, last: expected two noise levels {least}, which differ, got {self.first}, {self.last}"
            )

    def at(self, step: int, num_steps: int, *, sigma: float | None = None) -> float:
        check_step(step, num_steps)
        if self.axis == "step":
            return self.curve.value_at(_fraction(step, num_steps))
        if self.axis == "t":
            return self.curve.value_at(step / num_steps)
        level, first, last = _noise_level("OnAxis", sigma), self.first, self.last
        if self.axis == "logsnr":
            level, first, last = (math.log(v) if v > 0 else -math.inf for v in (level, first, last))
        return self.curve.value_at(min(max((first - level) / (first - last), 0.0), 1.0))


Window = Literal["half_open", "strict"]


@dataclass(frozen=True)
class Interval(Schedule):
    """``value`` while ``int(start*num_steps) <= step < int(stop*num_steps)``, else ``outside``.

    With ``outside=1`` a CFG scale turns guidance off there, and the denoiser runs one pass (2404.07724).

    Args:
        window: ``"half_open"``, as above, which is the window of diffusers' CFG; or ``"strict"``, with ``<`` on both
            sides, which is that of its SLG and PAG.
    """

    value: float
    start: float = 0.0
    stop: float = 1.0
    outside: float = 1.0
    window: Window = "half_open"

    choices = ("window",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _choice("Interval", "window", self.window, get_args(Window))
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(
                f"Interval: start, stop: expected shares with 0 <= start < stop <= 1, got {self.start}, {self.stop}"
            )

    def at(self, step: int, num_steps: int, *, sigma: float | None = None) -> float:
        check_step(step, num_steps)
        first, last = int(self.start * num_steps), int(self.stop * num_steps)
        inside = first < step < last if self.window == "strict" else first <= step < last
        return self.value if inside else self.outside


SigmaWindow = Literal["half_open", "strict", "closed"]


@dataclass(frozen=True)
class SigmaInterval(Schedule):
    """``value`` while ``low < sigma <= high``, else ``outside``.

    Args:
        low, high: noise levels, or log-SNRs (-2 log sigma) with ``axis="logsnr"``.
        outside: 1 turns a CFG scale off, and the denoiser runs one pass there.
        axis: ``"sigma"`` or ``"logsnr"``.
        window: ``"half_open"`` leaves the noisier end in and the cleaner one out, on either axis; ``"strict"`` leaves
            both out; ``"closed"`` has both in.

    Source: Kynkäänniemi et al., 2404.07724.
    """

    value: float
    low: float
    high: float
    outside: float = 1.0
    axis: Literal["sigma", "logsnr"] = "sigma"
    window: SigmaWindow = "half_open"

    choices = ("axis", "window")

    def __post_init__(self) -> None:
        super().__post_init__()
        _choice("SigmaInterval", "axis", self.axis, ("sigma", "logsnr"))
        _choice("SigmaInterval", "window", self.window, get_args(SigmaWindow))
        if self.low >= self.high:
            raise ValueError(f"SigmaInterval: low, high: expected low < high, got {self.low}, {self.high}")

    def at(self, step: int, num_steps: int, *, sigma: float | None = None) -> float:
        check_step(step, num_steps)
        level, low, high = _noise_level("SigmaInterval", sigma), self.low, self.high
        if self.axis == "logsnr":
            level, low, high = 2 * math.log(level) if level > 0 else -math.inf, -self.high, -self.low
        inside = low < level < high
        inside |= self.window != "strict" and level == high
        inside |= self.window == "closed" and level == low
        return self.value if inside else self.outside


def __getattr__(name: str) -> Any:
    """Return a schedule by a former name, with a warning."""
    if name not in _FORMER_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _FORMER_NAMES[name]
    warnings.warn(f"fastcfg.schedules.{name} is now fastcfg.schedules.{new}", DeprecationWarning, stacklevel=2)
    return globals()[new]
