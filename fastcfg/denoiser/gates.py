"""When a step does without the passes beside the conditional one: a policy over any rule."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..prediction import Kind
from ..rules import GatedCFG, Rule
from ..rules.cached import gate_of
from ..validate import check_choice

__all__ = ["Gate", "gate_for", "main_condition", "unfold"]


@dataclass(frozen=True)
class Gate:
    """When the passes beside the conditional one are run; between, each is ``cond`` less its remembered delta.

    A *fresh* pass is run, and its delta ``cond - prediction`` remembered. All fields combine; with none of them every
    step is fresh, which is the full guidance.

    Args:
        every: most steps from one fresh pass to the next. None sets no limit where ``drift`` or ``steps`` decides,
            and is 1 elsewhere.
        until: a share of the run, after whose first ``int(until * num_steps)`` steps passes are fresh no more
            (FastVideo's and sglang's gating, ``until=0.6`` say).
        steps: the steps that are fresh, found by :func:`fastcfg.denoiser.tune` say, of a run of ``num_steps`` steps.
        drift: how far a delta may have moved since it was fresh, as a share of its norm; it is taken to move as fast
            as between the two fresh ones before.
        stop: a share of the conditional prediction's norm: once a fresh delta is no longer, the run goes on with
            ``cond`` alone.
        cosine: once the cosine of ``cond`` and the other prediction is no smaller, the run goes on with ``cond`` alone
            (Adaptive Guidance; 0.9988 say). Of the model's own predictions, whatever their kind.
        weights: for each step of a run of ``num_steps`` the weights of the last fresh delta and of the one before it,
            in place of the last alone (LinearAG), fitted by :func:`fastcfg.denoiser.fit_weights`.
        num_steps: of the run that ``steps`` and ``weights`` are for.
        space: what deltas are remembered as: ``"x0"``, ``"eps"``, ``"v"``, ``"flow"``; None is what the model predicts.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Castillo et al., 2312.12487 (``cosine``, and linear extrapolation as LinearAG).
    """

    every: int | None = None
    until: float | None = None
    steps: tuple[int, ...] | None = None
    drift: float | None = None
    stop: float | None = None
    cosine: float | None = None
    weights: tuple[tuple[float, float], ...] | None = None
    num_steps: int | None = None
    space: Kind | None = None

    def __post_init__(self) -> None:
        for name in ("every", "num_steps"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}: expected 1 or more steps, or None, got {value!r}")
        for name, low, high in (("until", 0.0, 1.0), ("drift", 0.0, None), ("stop", 0.0, None), ("cosine", -1.0, 1.0)):
            _set_share(self, name, low, high)
        if (self.steps is not None or self.weights is not None) and self.num_steps is None:
            raise ValueError("num_steps: expected the number of steps that steps and weights are for")
        if self.steps is not None:
            given = tuple(self.steps)
            if any(type(s) is not int for s in given) or list(given) != sorted({s for s in given if s >= 0}):
                raise ValueError(f"steps: expected rising numbers of steps from 0, got {self.steps!r}")
            if given and self.num_steps is not None and given[-1] >= self.num_steps:
                raise ValueError(f"steps: expected steps below {self.num_steps}, got {given[-1]}")
            if self.until is not None:
                raise ValueError(f"until: goes with every, not with steps, got {self.until!r}")
            object.__setattr__(self, "steps", given)
        if self.weights is not None:
            rows = tuple(tuple(float(w) for w in row) for row in self.weights)
            if len(rows) != self.num_steps or any(len(row) != 2 for row in rows):
                raise ValueError(f"weights: expected two for each of {self.num_steps} steps, got {self.weights!r}")
            object.__setattr__(self, "weights", rows)
        if self.space is not None:
            check_choice("space", self.space, ("x0", "eps", "v", "flow", "score"))

    @property
    def measures(self) -> bool:
        """Return whether what it does depends on what is measured of the predictions."""
        return self.drift is not None or self.ends

    @property
    def ends(self) -> bool:
        """Return whether it may end in ``cond`` alone."""
        return self.stop is not None or self.cosine is not None

    @property
    def whole(self) -> bool:
        """Return whether every pass is run at every step."""
        return replace(self, space=None, num_steps=None) in (Gate(), Gate(every=1), Gate(until=1.0))

    def due(self, step: int, num_steps: int | None, last: int, rate: float = float("inf")) -> bool:
        """Return whether a pass that was fresh at a step before is to be fresh again.

        Args:
            step: the step, from 0; num_steps: of the run; last: the step at which the pass was fresh.
            rate: how far its delta has been moving in a step, as a share of its norm.

        Raises:
            ValueError: if the run's number of steps is needed, or another one than the policy is for.
        """
        if num_steps is None and (self.until is not None or self.num_steps is not None):
            raise ValueError("num_steps: the gate needs it; give step= and num_steps=")
        if self.num_steps is not None and num_steps != self.num_steps:
            raise ValueError(f"gate: it is for runs of {self.num_steps} steps, got {num_steps}; tune one for those")
        age = step - last
        closed = self.until is not None and num_steps is not None and step >= int(num_steps * self.until)
        if self.steps is not None and any(last < fresh <= step for fresh in self.steps):
            return True
        if self.every is not None and not closed and (self.every == 1 or age >= self.every):
            return True
        alone = self.every is None and self.steps is None
        if alone and not closed and (self.until is not None or self.drift is None):
            return True
        return self.drift is not None and age > 0 and not rate * age <= self.drift

    def recall(self, step: int) -> tuple[float, float]:
        """Weights of the last fresh delta and of the one before it at a step that is not fresh."""
        return (1.0, 0.0) if self.weights is None else self.weights[step]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object: the fields that are set."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"type": "Gate"} | {name: value for name, value in named.items() if value is not None}

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict())

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Gate:
        """The gate that :meth:`to_dict` described.

        Raises:
            TypeError, ValueError: for another object, or an unknown field.
        """
        given = dict(data)
        if (kind := given.pop("type", None)) != "Gate":
            raise ValueError(f"type: expected 'Gate', got {kind!r}")
        known = [f.name for f in fields(Gate)]
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"gate: no field {', '.join(unknown)}; it has {known}")
        for name in ("steps", "weights"):
            if given.get(name) is not None:
                if not isinstance(given[name], list | tuple):
                    raise ValueError(f"{name}: expected a list, got {given[name]!r}")
                given[name] = tuple(given[name])
        return Gate(**given)

    @staticmethod
    def from_json(text: str) -> Gate:
        """The gate that :meth:`to_json` wrote.

        Raises:
            ValueError: if it is none.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f'gate: expected JSON such as {{"type": "Gate", "every": 2}}, got {error}') from None
        if not isinstance(data, dict):
            raise ValueError(f"gate: expected a JSON object, got {type(data).__name__}")
        return Gate.from_dict(data)

    @staticmethod
    def load(path: str | Path) -> Gate:
        """The gate in a file that :meth:`save` or ``fastcfg tune`` wrote.

        Raises:
            OSError, ValueError: naming what is wrong.
        """
        return Gate.from_json(Path(path).read_text(encoding="utf-8"))

    def save(self, path: str | Path) -> None:
        """Write the gate to a file, whole or not at all."""
        write_atomically(Path(path), self.to_json() + "\n")


def _set_share(gate: Gate, name: str, low: float, high: float | None) -> None:
    value = getattr(gate, name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number or None, got {type(value).__name__}")
    if not low <= value <= (float("inf") if high is None else high) or value in (float("inf"), float("-inf")):
        wanted = f"{low:g} or more" if high is None else f"{low:g} to {high:g}"
        raise ValueError(f"{name}: expected a number of {wanted}, or None, got {value!r}")
    object.__setattr__(gate, name, float(value))


def main_condition(names: Sequence[str]) -> str:
    """The prediction that stands alone where there is no guidance: ``cond``, else ``cond_1``, else the last."""
    return next((name for name in ("cond", "cond_1") if name in names), names[-1])


def unfold(rule: Rule) -> tuple[Rule, Gate | None]:
    """A rule with :class:`fastcfg.GatedCFG` in it as the rule that it gates and the gate; any other as it is.

    One whose phase is decided (``phase="reuse"``) is a rule like any other.
    """
    gated = gate_of(rule)
    if gated is None or gated.phase != "auto":
        return rule, None
    space = rule.lowered.domain
    gate = Gate(gated.every, drift=gated.drift, stop=gated.stop, space=space)  # type: ignore[arg-type]
    return _ungated(rule), gate


def _ungated(rule: Rule) -> Rule:
    if isinstance(rule, GatedCFG):
        return rule.ungated()
    inner = rule.rule  # type: ignore[attr-defined]
    return replace(rule, rule=_ungated(inner))  # type: ignore[call-arg]


def gate_for(rule: Rule, gate: Gate | None) -> tuple[Rule, Gate | None]:
    """The rule and the gate that a rule and a ``gate=`` come to.

    Raises:
        TypeError, ValueError: naming ``gate``, if it is none, or one too many.
    """
    if gate is not None and not isinstance(gate, Gate):
        raise TypeError(f"gate: expected a fastcfg.Gate or None, got {type(gate).__name__}")
    plain, own = unfold(rule)
    if own is not None and gate is not None:
        raise ValueError(f"gate: {type(rule).__name__} has one of its own; give CFG, or no gate")
    return plain, own or gate
