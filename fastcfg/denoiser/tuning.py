"""The gate that changes a result least within a budget of passes, found by full runs of whatever is gated."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..files import write_atomically
from .gates import Gate

__all__ = ["Trial", "Tuning", "fit_weights", "gram_of", "linear_weights", "tune"]

Run = Callable[[Gate | None], Tensor]
STRENGTHS = (0.5, 1.0)
"""Shares of the linear extrapolation that a search tries, besides none."""


@dataclass(frozen=True)
class Trial:
    """A gate that was run: ``passes`` as a share of the full guidance's, and how far the result was from its.

    Attributes:
        error: ``|x - full| / |full|`` of the results; metric: the user's own, of the result.
    """

    gate: Gate
    passes: float
    error: float
    metric: float | None = None


@dataclass
class Tuning:
    """Result of a search: its best gate, and every gate that it ran, in order."""

    best: Trial
    trials: list[Trial] = field(default_factory=list)

    def frontier(self) -> list[Trial]:
        """The trials that no other beats in both passes and error, by passes."""
        found: list[Trial] = []
        for trial in sorted(self.trials, key=lambda t: (t.passes, t.error)):
            if not found or trial.error < found[-1].error:
                found.append(trial)
        return found


def gram_of(deltas: Sequence[Tensor]) -> Tensor:
    """The Gram matrix ``[T, T]`` in float64 of the deltas of T steps, summed over samples and elements."""
    rows = torch.stack([delta.detach().double().flatten().cpu() for delta in deltas])
    return rows @ rows.T


def fit_weights(gram: Tensor, steps: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """Weights of the last two fresh deltas that come nearest to each step's own, by least squares.

    Args:
        gram: of the deltas of a full run (:func:`gram_of`), or a sum of such matrices over runs.
        steps: which steps are fresh; the first is, in any case.

    Returns:
        For :class:`fastcfg.Gate`'s ``weights``, a pair for each step; (1, 0) where there is nothing to fit.

    Source: Castillo et al., 2312.12487, LinearAG (its regression is on all predictions before; this one on two).
    """
    count = gram.shape[0]
    found = []
    for step, (last, before) in zip(range(count), _last_two(steps, count), strict=True):
        if step == last or gram[last, last] <= 0:
            found.append((1.0, 0.0))
            continue
        alone = float(gram[step, last] / gram[last, last])
        if last == before:
            found.append((alone, 0.0))
            continue
        index = torch.tensor([last, before])
        square, right = gram[index][:, index], gram[index, step]
        determinant = float(torch.linalg.det(square))
        if determinant <= 1e-9 * float(square[0, 0] * square[1, 1]):  # One direction, which a single weight serves.
            found.append((alone, 0.0))
            continue
        first, second = torch.linalg.solve(square, right).tolist()
        found.append((first, second))
    return tuple(found)


def linear_weights(steps: Sequence[int], num_steps: int, strength: float = 1.0) -> tuple[tuple[float, float], ...]:
    """Weights of the last two fresh deltas that carry their change on in a line, by a share of it."""
    found = []
    for step, (last, before) in zip(range(num_steps), _last_two(steps, num_steps), strict=True):
        ahead = strength * (step - last) / (last - before) if last > before else 0.0
        found.append((1.0 + ahead, -ahead))
    return tuple(found)


def _last_two(steps: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """For each step the last fresh one and the one before, which is the same for the first."""
    fresh = sorted({0, *steps})
    for step in range(count):
        past = [s for s in fresh if s <= step]
        yield past[-1], past[-2] if len(past) > 1 else past[-1]


def tune(
    run: Run,
    num_steps: int,
    *,
    budget: float = 0.75,
    predictions: int = 2,
    deltas: Sequence[Tensor] | None = None,
    metric: Callable[[Tensor], float] | None = None,
    sweeps: int = 6,
    log: Path | None = None,
    name: str = "",
    progress: Callable[[Trial, Trial | None], None] = lambda trial, best: None,
) -> Tuning:
    """Find the fresh steps, and how deltas are carried on between them, by coordinate search over full runs.

    The search begins with the best of three lists of fresh steps (the first ones, evenly spread ones, and ones that
    thin out); then moves one fresh step at a time between its neighbours, as long as that brings the result nearer to
    that of the full guidance, and tries linear and, with ``deltas``, fitted weights. The same ``run`` gives the same
    gate.

    Args:
        run: a whole sampling run under a gate, from the same noise each time; None is the full guidance. Returns the
            final latents.
        num_steps: steps of the run.
        budget: the most passes, as a share of the full guidance's.
        predictions: passes of a step of the full guidance.
        deltas: of the full run's steps, ``cond - uncond``, for :func:`fit_weights`.
        metric: of a result, to be reported beside the error.
        sweeps: most rounds of moves.
        log: file of what has been run; a search that finds one of the same ``name`` goes on from it.
        progress: called after each run, with its trial and the best so far.

    Raises:
        ValueError: naming the argument.
    """
    if type(num_steps) is not int or num_steps < 2:
        raise ValueError(f"num_steps: expected 2 or more, got {num_steps!r}")
    if type(predictions) is not int or predictions < 2:
        raise ValueError(f"predictions: expected 2 or more, got {predictions!r}")
    least = (num_steps + predictions - 1) / (predictions * num_steps)
    if not least <= budget <= 1:
        raise ValueError(f"budget: expected a share from {least:.3f} (one fresh step) to 1, got {budget!r}")
    if deltas is not None and len(deltas) != num_steps:
        raise ValueError(f"deltas: expected one for each of {num_steps} steps, got {len(deltas)}")
    count = int((budget * predictions * num_steps - num_steps) / (predictions - 1) + 1e-9)
    search = _Search(run, num_steps, predictions, metric, _Log(log, name), progress)
    gram = None if deltas is None else gram_of(deltas)
    best = min((search.trial(steps, None) for steps in _starts(count, num_steps)), key=_error)
    for sweep in range(sweeps):
        before = best
        best = search.sweep(best, gram)
        best = min([best, *search.weighted(best, gram)], key=_error)
        if best == before and sweep:
            break
    return Tuning(best, search.trials)


def _error(trial: Trial) -> float:
    return trial.error


def _starts(count: int, num_steps: int) -> list[tuple[int, ...]]:
    """Lists of ``count`` fresh steps to begin with."""
    first = tuple(range(count))
    even = tuple(i * num_steps // count for i in range(count))
    thinning = sorted({int(num_steps * (i / count) ** 1.7) for i in range(count)})
    free = (step for step in range(num_steps) if step not in thinning)
    full = tuple(sorted([*thinning, *itertools.islice(free, count - len(thinning))]))
    return list(dict.fromkeys((first, even, full)))


class _Search:
    def __init__(
        self,
        run: Run,
        num_steps: int,
        predictions: int,
        metric: Callable[[Tensor], float] | None,
        log: _Log,
        progress: Callable[[Trial, Trial | None], None],
    ) -> None:
        self._run, self._count, self._predictions = run, num_steps, predictions
        self._metric, self._log, self._progress = metric, log, progress
        self._full: Tensor | None = None
        self._known: dict[Gate, Trial] = {}
        self.trials: list[Trial] = []

    def trial(self, steps: tuple[int, ...], weights: tuple[tuple[float, float], ...] | None) -> Trial:
        """A gate's run, made once."""
        gate = Gate(steps=steps, weights=weights, num_steps=self._count)
        if (known := self._known.get(gate)) is not None:
            return known
        fresh = len({0, *steps})
        passes = (self._count + fresh * (self._predictions - 1)) / (self._predictions * self._count)
        figures = self._log.get(gate)
        if figures is None:
            if self._full is None:
                self._full = self._run(None).detach().double().cpu()
            result = self._run(gate)
            distance = (result.detach().double().cpu() - self._full).norm() / self._full.norm()
            figures = (float(distance), None if self._metric is None else float(self._metric(result)))
            self._log.put(gate, figures)
        error, metric = figures
        found = Trial(gate, passes, error if math.isfinite(error) else math.inf, metric)
        self._known[gate] = found
        self.trials.append(found)
        self._progress(found, min(self.trials, key=_error))
        return found

    def sweep(self, best: Trial, gram: Tensor | None) -> Trial:
        """Each fresh step but the first moved to the best place between its neighbours."""
        steps = best.gate.steps or ()
        for place in range(1, len(steps)):
            low, high = steps[place - 1], steps[place + 1] if place + 1 < len(steps) else self._count
            for step in range(low + 1, high):
                moved = (*steps[:place], step, *steps[place + 1 :])
                best = min(best, self.trial(moved, self._like(best, moved, gram)), key=_error)
            steps = best.gate.steps or ()
        return best

    def _like(self, best: Trial, steps: tuple[int, ...], gram: Tensor | None) -> tuple[tuple[float, float], ...] | None:
        """Weights of other steps, made as those of the best are."""
        own, now = best.gate.weights, best.gate.steps or ()
        if own is None:
            return None
        for strength in STRENGTHS:
            if own == linear_weights(now, self._count, strength):
                return linear_weights(steps, self._count, strength)
        assert gram is not None
        return fit_weights(gram, steps)

    def weighted(self, best: Trial, gram: Tensor | None) -> Iterator[Trial]:
        """The best steps with other weights."""
        steps = best.gate.steps or ()
        yield self.trial(steps, None)
        for strength in STRENGTHS:
            yield self.trial(steps, linear_weights(steps, self._count, strength))
        if gram is not None:
            yield self.trial(steps, fit_weights(gram, steps))


class _Log:
    """Log of gates that were run, in a file: a search that was interrupted goes on from it."""

    def __init__(self, path: Path | None, name: str) -> None:
        self._path, self._name = path, name
        self._figures: dict[str, list[float | None]] = {}
        if path is not None and path.exists():
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                kept = data["runs"] if data["name"] == name else {}
                self._figures = {
                    str(key): [float(v[0]), None if v[1] is None else float(v[1])] for key, v in kept.items()
                }
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise ValueError(f"log: {path} holds no runs of a search ({error}); remove it") from None

    @staticmethod
    def _key(gate: Gate) -> str:
        return hashlib.sha256(gate.to_json().encode()).hexdigest()[:32]

    def get(self, gate: Gate) -> tuple[float, float | None] | None:
        found = self._figures.get(self._key(gate))
        return None if found is None else (float(found[0] or 0.0), found[1])

    def put(self, gate: Gate, figures: tuple[float, float | None]) -> None:
        self._figures[self._key(gate)] = list(figures)
        if self._path is not None:
            write_atomically(self._path, json.dumps({"name": self._name, "runs": self._figures}) + "\n")
