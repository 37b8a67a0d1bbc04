"""A gate at work: which passes a step runs, what stands for the others, and what is remembered of those that ran.

A delta is remembered by the request (whose :class:`fastcfg.State` it is in) and the prediction, with what it was made
from: the run, the model, the latent's shape and the condition. Where one of those is another, the pass is fresh.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from fastcfg_kernels.backends.torch.functional import Merge
from fastcfg_kernels.backends.torch.tiles import accumulator
from torch import Tensor

from ..core.conditions import Condition, same_condition
from ..core.state import State
from ..prediction import Prediction
from ..rules import Linear
from .batching import leaves_of
from .gate import Arriving, measure_delta
from .gates import Gate, main_condition
from .planner import PassPlan

__all__ = ["Gating", "Origin"]

AT = "gate.at"


def _delta(name: str) -> str:
    return f"gate.delta.{name}"


def _before(name: str) -> str:
    return f"gate.before.{name}"


def _step(name: str) -> str:
    return f"gate.step.{name}"


def _rate(name: str) -> str:
    return f"gate.rate.{name}"


def _dead(name: str) -> str:
    return f"gate.dead.{name}"


def _key(name: str) -> str:
    return f"gate.key.{name}"


class Origin:
    """Origin of a step's predictions; a remembered delta serves only the same one.

    Args:
        model: the model's name, which is saved with a state, or itself, which is not.
        shape: of the latent; None where it is not known yet, and not compared.
        conditions: by prediction, what it is conditioned on.
    """

    def __init__(self, model: Any, shape: Sequence[int] | None, conditions: Mapping[str, Any]) -> None:
        self.model = model
        self.shape = None if shape is None else tuple(shape)
        self.conditions = conditions

    @property
    def key(self) -> float | None:
        """The model's name and the shape as a number that a state saves."""
        if self.shape is None:
            return None
        name = self.model if isinstance(self.model, str) else ""
        return float(zlib.crc32(f"{name} {self.shape}".encode()))

    def seen(self, *names: str) -> _Seen:
        """Return what is there to be compared with at a later step."""
        found = [self.conditions.get(name) for name in names]
        models = [self.model, *(c.model for c in found if isinstance(c, Condition) and c.model is not None)]
        return _Seen(models, [_snapshot(leaf) for one in found for leaf in _leaves_of(one)])


def _leaves_of(condition: Any) -> Iterator[Any]:
    return leaves_of(condition.kwargs if isinstance(condition, Condition) else condition)


def _snapshot(leaf: Any) -> tuple[Any, int]:
    return leaf, leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0


class _Seen:
    def __init__(self, models: list[Any], leaves: list[tuple[Any, int]]) -> None:
        self.models, self.leaves = models, leaves

    def same(self, other: _Seen) -> bool:
        """Return whether nothing is another.

        Tensors by identity and writes, and on a CPU by value where they are copies.
        """
        if len(self.models) != len(other.models) or len(self.leaves) != len(other.leaves):
            return False
        if any(a is not b and a != b for a, b in zip(self.models, other.models, strict=True)):
            return False
        return all(map(_same_leaf, self.leaves, other.leaves))


def _same_leaf(a: tuple[Any, int], b: tuple[Any, int]) -> bool:
    (old, writes), (new, now) = a, b
    if same_condition(old, new):
        return writes == now
    if not isinstance(old, Tensor) or not isinstance(new, Tensor) or not old.device.type == new.device.type == "cpu":
        return False
    # A copy, which is the same if it holds what the other held when it was seen.
    return _snapshot(old)[1] == writes and old.dtype == new.dtype and old.shape == new.shape and torch.equal(old, new)


@cache
def _alone(name: str) -> Linear:
    return Linear(((name, 1.0),))


class Gating:
    """A gate over a rule.

    Args:
        names: the rule's conditions; gate: its policy.
        wait: wait for a measure as soon as it is taken, so that it counts at the very next step. Without it a measure
            on a GPU counts when it has arrived, and a pass whose drift is not known yet is fresh.
        merge: where samples are in parts; see :class:`fastcfg.parallel.Shards`.
    """

    def __init__(self, names: Sequence[str], gate: Gate, *, wait: bool = False, merge: Merge | None = None) -> None:
        self.gate, self.wait, self.merge = gate, wait, merge
        self.main = main_condition(names)
        # Made now, for torch.compile can't trace the making of a rule.
        self._alone = _alone(self.main)

    def plan(
        self, full: PassPlan, state: State | None, step: int | None, num_steps: int | None, origin: Origin
    ) -> PassPlan:
        """The passes that a step runs, of those that its rule takes. Nothing is changed.

        Raises:
            ValueError: without a state and a step.
        """
        if state is None:
            raise ValueError("state: the gate remembers deltas; give state=fastcfg.State(), one for a request")
        if step is None:
            raise ValueError("step: the gate needs step= and num_steps=")
        main = dict(full.sources).get(self.main)
        sides = tuple(name for name in full.passes if name != main)
        if main is None or not sides:
            return full
        state.settle(self.wait)
        numbers = state.numbers
        known = {name for name in sides if self._serves(name, main, state, step, origin)}
        if self.gate.ends and all(name in known and numbers.get(_dead(name)) for name in sides):
            saved = (*full.saved_by, ("stopped", len(sides)))
            return PassPlan(self._alone, (main,), ((self.main, main),), saved)
        kept = tuple(
            name
            for name in sides
            if name in known
            and not self.gate.due(step, num_steps, int(numbers[_step(name)]), numbers.get(_rate(name), float("inf")))
        )
        fresh = tuple(name for name in full.passes if name not in kept)
        saved = (*full.saved_by, ("cached", len(kept))) if kept else full.saved_by
        recalled = tuple((name, self.gate.recall(step)) for name in kept)
        begins = () if self.gate.weights is None else tuple(name for name in sides if name not in known)
        return PassPlan(full.rule, fresh, full.sources, saved, main, recalled, begins)

    def _serves(self, name: str, main: str, state: State, step: int, origin: Origin) -> bool:
        """Return whether what is remembered of a prediction is of this run, model, shape and condition."""
        numbers = state.numbers
        last = numbers.get(_step(name))
        if last is None or _delta(name) not in state or step < max(last, numbers.get(AT, last)):
            return False
        if torch.compiler.is_compiling():
            return True
        key = origin.key
        if key is not None and numbers.get(_key(name), key) != key:
            return False
        seen = state.seen.get(_key(name))
        return seen is None or seen.same(origin.seen(main, name))

    def recall(
        self,
        planned: PassPlan,
        results: Mapping[str, Tensor],
        state: State | None,
        level: Prediction | None,
        weights: Mapping[str, Sequence[Any]] | None = None,
    ) -> dict[str, Tensor]:
        """The results of a step's passes and, in their dtype, what stands for those that were not run.

        Args:
            results: by pass, ``[B, ...]``.
            level: what the model predicts at which noise level, for a gate with a space of its own.
            weights: in place of the plan's, tensors where a step is captured.
        """
        found = dict(results)
        if not planned.recalled or state is None:
            return found
        cond = results[planned.main]
        acc = accumulator(cond.dtype)
        gain = self._gain(level, cond, acc)
        for name, (last, before) in planned.recalled:
            if weights is not None:
                last, before = weights[name]
            delta = state[_delta(name)]
            if self.gate.weights is not None:
                delta = last * delta + before * state[_before(name)]
            found[name] = (cond.to(acc) - (delta if gain is None else delta / gain)).to(cond.dtype)
        return found

    def _gain(self, level: Prediction | None, like: Tensor, acc: torch.dtype) -> Any:
        """The factor from a delta of the model's predictions to one in the gate's space, or None where it is 1."""
        if self.gate.space is None:
            return None
        if level is None:
            raise ValueError(f"prediction: the gate remembers deltas as {self.gate.space}; say what the model predicts")
        _, gain = level.to(self.gate.space)
        if not isinstance(gain, Tensor) or not gain.dim():
            return gain
        return gain.to(like.device, acc).view(-1, *[1] * (like.dim() - 1))

    def names(self, planned: PassPlan) -> tuple[list[str], list[str]]:
        """The tensors of a state that a plan reads, and those that it writes."""
        reads = [_delta(name) for name, _ in planned.recalled]
        writes = [_delta(name) for name in planned.sides]
        if self.gate.weights is not None:
            reads += [_before(name) for name, _ in planned.recalled]
            writes += [_before(name) for name in planned.sides]
        if self.gate.measures or self.gate.weights is not None:
            reads += [_delta(name) for name in planned.sides]
        return reads, writes

    def remember(
        self, planned: PassPlan, results: Mapping[str, Tensor], state: State, level: Prediction | None
    ) -> Tensor | None:
        """Put the deltas of a step's fresh passes into a state.

        Returns:
            What :func:`measure_delta` finds of each, ``[P, 3, B]``, where the gate asks for it.
        """
        if not planned.sides:
            return None
        cond = results[planned.main]
        acc = accumulator(cond.dtype)
        gain = self._gain(level, cond, acc)
        measured = []
        for name in planned.sides:
            own = cond.to(acc) - results[name]
            delta = own if gain is None else own * gain
            old = state.get(_delta(name))
            old = delta if old is None or old.shape != delta.shape or name in planned.begins else old
            if self.gate.measures:
                found = measure_delta(delta, old, cond, self.merge)
                if gain is not None and self.gate.ends:  # Lengths and angles are those of the predictions.
                    found = torch.cat([found[:1], measure_delta(own, own, cond, self.merge)[1:]])
                measured.append(found)
            if self.gate.weights is not None:
                state.remember(_before(name), old)
            state.remember(_delta(name), delta)
        return torch.stack(measured) if measured else None

    def note(self, planned: PassPlan, state: State, step: int, measured: Tensor | None, origin: Origin) -> None:
        """Take note that a step is done: what was fresh, and what was measured of it."""
        numbers = state.numbers
        ages = []
        for name in planned.sides:
            served = self._serves(name, planned.main, state, step, origin)
            ages.append(step - numbers[_step(name)] if served else 0.0)
            if not served:
                numbers.pop(_rate(name), None)
                numbers.pop(_dead(name), None)
            numbers[_step(name)] = step
            if (key := origin.key) is not None:
                numbers[_key(name)] = key
            if not torch.compiler.is_compiling():
                state.seen[_key(name)] = origin.seen(planned.main, name)
        numbers[AT] = step
        if measured is not None:
            names = [(_rate(name), _dead(name)) for name in planned.sides]
            state.arriving = Arriving(measured, names, ages, self.gate)
            state.settle(self.wait or measured.device.type == "cpu")
