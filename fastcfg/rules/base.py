"""Guidance rules: frozen, hashable, serialisable values with one formula."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from numbers import Real
from typing import Any, ClassVar, NamedTuple, cast

import fastcfg_kernels as fk
import torch
from fastcfg_kernels.finite import finite_number
from fastcfg_kernels.tracing import constant_when_traced, kept_property
from torch import Tensor

from ..documents import check_document, checked, parse_object
from ..schedules import Schedule, check_step, same_place
from ..validate import check_choice
from .names import check_condition_names
from .step_stages import STAGES

__all__ = ["Lowered", "Parameter", "Rule", "check_choice", "number_or_schedule", "registry"]

Parameter = float | Schedule
"""What a numeric field of a rule holds: a finite number, or a schedule that ``rule.at`` resolves."""

registry: dict[str, type[Rule]] = {}
"""Rule classes by name, for reading JSON. A class registers itself when it is defined."""


def number_or_schedule(name: str, value: Any) -> Parameter:
    """``value`` as a float, or the schedule it is.

    Raises:
        TypeError: if it is neither. Tensors belong to the call: ``guide(..., params={"scale": tensor})``.
        ValueError: if it is not finite.
    """
    if type(value) is float and value - value == 0.0:  # A finite one: rules are made anew at every step.
        return value
    if isinstance(value, Schedule):
        return value
    if isinstance(value, Tensor):
        raise TypeError(
            f"{name}: expected a number or a schedule, got Tensor; give tensors to the call, as params={{...}}"
        )
    return finite_number(name, value, "a number or a schedule")


class Range(NamedTuple):
    """Values that a parameter takes: ``low ... high``, without ``low`` itself where it is ``above``."""

    low: float
    high: float = math.inf
    above: bool = False


SHARE = Range(0.0, 1.0)
AT_LEAST_ZERO = Range(0.0)
POSITIVE = Range(0.0, above=True)


def check_range(name: str, value: Any, allowed: Range) -> None:
    """Raise a ValueError naming the parameter unless a number is in its range; schedules are checked when resolved."""
    if isinstance(value, Schedule):
        return
    if value < allowed.low or value > allowed.high or (allowed.above and value == allowed.low):
        if allowed.high < math.inf:
            raise ValueError(f"{name}: expected a share in {allowed.low:g} ... {allowed.high:g}, got {value}")
        more = "above" if allowed.above else "of at least"
        raise ValueError(f"{name}: expected a number {more} {allowed.low:g}, got {value}")


@dataclass(frozen=True)
class Lowered:
    """A rule as the kernels see it: formulas over named predictions, and values for their parameters.

    Attributes:
        predictions: names in the difference basis' order, the base first.
        stages: the rule's formula, then its modifiers, innermost first.
        params: values by public name.
        extras: tensors of the state that the formulas read; a missing one is zero, as before the first step.
        ranges: of parameters by public name; the rule's own fields have been checked against them.
        given: those of them that the caller puts into the state, and that may not be missing.
        updates: tensors of the state that the program's further outputs become.
        dims: dimensions that the sums run over; None is all but the batch.
        domain: the kind of prediction that the formulas work on; None is the model's own.
    """

    predictions: tuple[str, ...]
    stages: tuple[fk.Stage, ...]
    params: Mapping[str, Parameter]
    extras: tuple[str, ...] = ()
    updates: tuple[str, ...] = ()
    dims: tuple[int, ...] | None = None
    domain: str | None = None
    given: tuple[str, ...] = ()
    ranges: Mapping[str, Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._make_variant  # noqa: B018 -- Before Python 3.12 a first read takes a lock, which Dynamo can't trace.

    def check_range(self, name: str, value: Any, check: bool = False) -> None:
        """Raise a ValueError unless a call's value of a parameter is one that the rule itself takes.

        Args:
            check: look at tensors too, which waits for a device.
        """
        if name not in self.ranges:
            return
        numbers = value if isinstance(value, list | tuple) else [value]
        if isinstance(value, Tensor):
            numbers = value.flatten().tolist() if check else []
        for number in numbers:
            if isinstance(number, Real):
                check_range(name, finite_number(name, number), self.ranges[name])

    @kept_property
    def program(self) -> fk.Program:
        """The compiled program; equal formulas share one."""
        return fk.compile_program(self.predictions, self.stages, self.extras, 1 + len(self.updates))

    @kept_property
    def affine_program(self) -> fk.Program:
        """The same on ``shift * x + gain * prediction``."""
        return self.variant(affine=True)

    @kept_property
    def _variants(self) -> dict[_Key, fk.Program]:
        return {_PLAIN: self.program}

    def variant(
        self,
        *,
        affine: bool = False,
        step: int = -1,
        scaled: bool = False,
        masked: bool = False,
        stats: Sequence[str] = (),
    ) -> fk.Program:
        """The formulas as a program that does more in its pass, made once.

        Args:
            affine: on ``shift * x + gain * prediction``.
            step: a stage of :data:`~fastcfg.rules.step_stages.STAGES` by number, after all others; -1 is none.
            scaled, masked: with an elementwise factor of the deltas; with a mask of the sums.
            stats: names of what its launch writes beside the results; see :mod:`fastcfg_kernels.formula.stats`.
        """
        if isinstance(stats, str):
            raise TypeError(f"stats: expected a sequence of names, got the string {stats!r}")
        key = (affine, step, scaled, masked, tuple(stats))
        if key == _PLAIN:
            return self.program  # Which a trace reads without a guard on this very object, and so without a recompile.
        self._make_variant(key)
        return self._variants[key]

    @kept_property
    def _make_variant(self) -> Callable[[_Key], bool]:
        """Sees that a variant is there: torch.compile runs it as it is, and then reads the program by its place.

        Its argument is a plain tuple, for torch before 2.11 takes no dataclass there.
        """

        @constant_when_traced
        def make(key: _Key) -> bool:
            if key not in self._variants:
                self._variants[key] = _variant(self, key)
            return True

        return make


_Key = tuple[bool, int, bool, bool, tuple[str, ...]]
_PLAIN: _Key = (False, -1, False, False, ())


def _variant(lowered: Lowered, key: _Key) -> fk.Program:
    affine, step, scaled, masked, stats = key
    return fk.compile_program(
        lowered.predictions,
        lowered.stages if step < 0 else (*lowered.stages, STAGES[step]),
        lowered.extras,
        1 + len(lowered.updates),
        affine,
        scaled,
        masked,
        stats,
    )


def _then_prepare(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A ``__post_init__`` that also fills the rule's cached properties.

    ``torch.compile`` can't trace the making of a program, so that a rule has to be ready before it is called.
    """

    @wraps(check)
    def prepared(self: Rule) -> None:
        check(self)
        form = None if torch.compiler.is_dynamo_compiling() else self.lowers_like()
        if form is not None and (known := _FORMS.get((type(self), form))) is not None:
            known.give(self)
            return
        check_condition_names("conditions", self.conditions)
        _ = self.plain, self.numbers, self.lowered.program, self.lowered._variants
        if self.lowered.domain is not None:
            _ = self.lowered.affine_program
        if form is not None and self.numbers is not None:
            _FORMS[type(self), form] = _Form(self)

    return prepared


class _Form:
    """Form that rules of one class and :meth:`Rule.lowers_like` share: all but their parameters' values."""

    def __init__(self, rule: Rule) -> None:
        self._names = rule.program.params
        self._kept = {"plain": rule.plain, "short": rule.short}
        self._lowered = rule.lowered.__dict__

    def give(self, rule: Rule) -> None:
        """Fill in what a rule of this form would work out anew."""
        own = rule.__dict__
        params = {name: own[name] for name in self._names}
        lowered = object.__new__(Lowered)
        lowered.__dict__.update(self._lowered)
        lowered.__dict__["params"] = params
        own.update(self._kept, numbers=tuple(params.values()), lowered=lowered)


_FORMS: dict[tuple[type[Rule], Hashable], _Form] = {}


@dataclass(frozen=True)
class Rule:
    """Base of all rules: frozen dataclasses of numbers, schedules and named choices.

    A subclass defines :attr:`conditions` and :meth:`lower`. Rules compare and hash by value and hold no tensors.
    """

    title: ClassVar[str] = ""
    """One line: the formula and its source."""
    stands_for: ClassVar[tuple[str, ...]] = ()
    """Predictions of the guidance it approximates that the rule does without at every step."""

    def __init_subclass__(cls, register: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if register:
            if (taken := registry.get(cls.__name__)) is not None and not same_place(taken, cls):
                raise ValueError(f"rule: {cls.__name__!r} is the name of a rule of {taken.__module__!r} already")
            registry[cls.__name__] = cls
            cls.__post_init__ = _then_prepare(cls.__post_init__)  # type: ignore[method-assign, assignment]

    @classmethod
    def version(cls, fields: dict[str, Any]) -> type[Rule]:
        """The class that a document means; takes what says so, and is no field, out of ``fields``.

        Raises:
            ValueError: if the document was written by another definition of this name.
        """
        return cls

    def __post_init__(self) -> None:
        """Check the fields."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the predictions that the rule takes, in batch order."""
        raise NotImplementedError

    def lower(self) -> Lowered:
        """Formulas and parameters."""
        raise NotImplementedError

    def lowers_like(self) -> Hashable | None:
        """Return what :meth:`lower` depends on but for its parameters' values, so that rules of a form share a program.

        A rule that is made anew at every step gets by with a look-up then. Its program's parameters are fields of the
        same names. None, the default, lowers each rule by itself, as a rule with schedules has to be.
        """
        return None

    @property
    def prepares(self) -> bool:
        """Return whether the formula reads tensors that :meth:`prepare` makes of the predictions."""
        inner = getattr(self, "rule", None)
        return isinstance(inner, Rule) and inner.prepares

    def prepare(
        self, predictions: Mapping[str, Tensor], params: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Further inputs of the formula by name, and the parameters that are left for it.

        Args:
            predictions: by the names in :attr:`conditions`; params: the call's overrides.

        Returns:
            Tensors in the dtype that is computed in (float64 for float64, else float32), and the rest of ``params``.
        """
        inner = getattr(self, "rule", None)
        if not isinstance(inner, Rule):
            raise NotImplementedError
        return inner.prepare(predictions, params)

    @kept_property
    def lowered(self) -> Lowered:
        """:meth:`lower`, kept."""
        return self.lower()

    @kept_property
    def plain(self) -> bool:
        """Return whether to guide is to run the program on the predictions and the rule's numbers, and nothing else."""
        low = self.lowered
        return self.numbers is not None and not (
            self.prepares or low.dims or low.extras or low.updates or low.domain is not None
        )

    @kept_property
    def short(self) -> fk.ShortWay | None:
        """The program's short way, where to guide is to run the program and nothing else."""
        return fk.short_way(self.program) if self.plain and self.program.short else None

    @kept_property
    def numbers(self) -> tuple[float, ...] | None:
        """The parameters' values in the program's order, or None while one of them is a schedule."""
        values = [self.lowered.params[name] for name in self.program.params]
        return None if self.scheduled else tuple(cast(list[float], values))

    @property
    def program(self) -> fk.Program:
        """The compiled formulas."""
        return self.lowered.program

    def _values(self) -> Iterator[tuple[str, Any]]:
        for own in dataclasses.fields(self):
            yield own.name, getattr(self, own.name)

    @property
    def scheduled(self) -> bool:
        """Return whether any parameter is a schedule still to be resolved by :meth:`at`."""
        return self._holds_schedules()

    def _holds_schedules(self) -> bool:
        return any(
            isinstance(item, Schedule) or (isinstance(item, Rule) and item.scheduled)
            for _, value in self._values()
            for item in (value if isinstance(value, tuple) else (value,))
        )

    def at(self, step: int, num_steps: int, *, sigma: float | None = None) -> Rule:
        """The rule with its schedules resolved for a step.

        Args:
            step: index from 0; num_steps: steps of the run.
            sigma: the step's noise level, for schedules that run on it (see :meth:`Schedule.at`).

        Raises:
            TypeError, ValueError: naming ``step``, ``num_steps`` or ``sigma`` if it is missing or out of range.
        """
        check_step(step, num_steps)
        if not self.scheduled:
            return self
        noise = {} if sigma is None else {"sigma": sigma}

        def resolve(value: Any) -> Any:
            if isinstance(value, Schedule | Rule):
                return value.at(step, num_steps, **noise)
            return tuple(resolve(v) for v in value) if isinstance(value, tuple) else value

        return dataclasses.replace(self, **{name: resolve(value) for name, value in self._values()})

    def eager(self, predictions: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
        """The rule in diffusers' order of operations and the predictions' dtype, for ``numerics="eager"``.

        Args:
            predictions: by name, ``[B, ...]``; params: by name, numbers or tensors that broadcast.
        """
        raise ValueError(f"numerics: 'eager' is for rules without sums that a peer has; {type(self).__name__} is none")

    def simplify(self) -> Rule:
        """An equal rule that takes fewer predictions where weights are zero, else the rule itself.

        A rule without sums is linear with known weights, so that a prediction whose weight is exactly zero drops:
        CFG at scale 1 takes ``cond`` alone. Rules with sums override this. Schedules have to be resolved first.
        """
        from .linear import Linear

        weights = self.basis_weights()
        if weights is None or isinstance(self, Linear):
            return self
        (name, base), *deltas = weights.items()
        by_name = {name: base - math.fsum(weight for _, weight in deltas)} | dict(deltas)
        if all(by_name.values()):
            return self
        left = tuple((name, by_name[name]) for name in self.conditions if by_name[name] != 0)
        return Linear(left) if left else self

    def basis_weights(self) -> dict[str, float] | None:
        """Weights of the first prediction and of the deltas from it, by name, where they are known numbers.

        None for a rule with sums, a clamp, state, a domain, tensors that it prepares, or schedules.
        """
        lowered = self.lowered
        program = lowered.program
        if self.scheduled or program.reduces or program.clamps or program.extras or program.outputs > 1:
            return None
        if self.prepares or lowered.domain is not None:
            return None
        weights = program.weigh((), 0.0, tuple(lowered.params[name] for name in program.params))
        return dict(zip(lowered.predictions, (float(w) for w in weights), strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the fields alone: what is worked out from them holds functions made from text."""
        return type(self), tuple(getattr(self, field.name) for field in dataclasses.fields(self) if field.init)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object: the rule's type and its fields."""

        def plain(value: Any) -> Any:
            if isinstance(value, Schedule | Rule):
                return value.to_dict()
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        own = {} if type(self).__module__.startswith("fastcfg.") else {"module": type(self).__module__}
        fields = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self) if field.init}
        return {"type": type(self).__name__} | own | fields

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict())

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Rule:
        """The rule that :meth:`to_dict` described.

        Raises:
            ValueError: naming the place in the document, for an unknown rule, field or schedule, a value that a field
                does not take, or a document beyond the bounds of :mod:`fastcfg.documents`.
        """
        check_document(data, "rule")
        return _read_rule(data, "rule")

    @staticmethod
    def from_json(text: str) -> Rule:
        """The rule that :meth:`to_json` wrote.

        Raises:
            ValueError: naming the place in the document, for anything else.
        """
        return Rule.from_dict(parse_object(text, "rule"))


def _read_rule(data: Any, path: str) -> Rule:
    """The rule of a part of a document."""

    def read(value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            if "schedule" in value and "type" not in value:
                return checked(where, lambda: Schedule.from_dict(dict(value)))
            return _read_rule(value, where)
        return (
            tuple(read(v, f"{where}[{i}]") for i, v in enumerate(value)) if isinstance(value, list | tuple) else value
        )

    if not isinstance(data, Mapping):
        raise ValueError(f"{path}: expected a JSON object, got {type(data).__name__}")
    fields = dict(data)
    name, module = fields.pop("type", None), fields.pop("module", None)
    if not isinstance(name, str) or name not in registry:
        if isinstance(module, str):
            raise ValueError(f"{path}.type: {name!r} is a rule of the module {module!r}, which is to be imported first")
        raise ValueError(f"{path}.type: expected one of {sorted(registry)}, got {name!r}")
    cls = checked(path, lambda: registry[name].version(fields))
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"{path}: {name} has no field {', '.join(unknown)}; it has {sorted(known)}")
    values = {key: read(value, f"{path}.{key}") for key, value in fields.items()}
    return checked(path, lambda: cls(**values))
