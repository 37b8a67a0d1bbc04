"""The search for a gate: against all gates of a small run, fits against least squares, and a search that is resumed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcfg import CFG, Gate, GuidedDenoiser, State
from fastcfg.denoiser import Trial, fit_weights, gram_of, linear_weights, tune

from .models import draw

STEPS = 8
X = draw(3, 4, 5).double()
GIVEN = {"uncond": {"y": torch.zeros(3, 1, 1)}, "cond": {"y": torch.ones(3, 1, 1)}}


def model(x: Tensor, t: float, y: Tensor) -> Tensor:
    """Whose delta turns quickly about step 3 and hardly elsewhere."""
    return 0.3 * x + y * torch.tanh(x + 4.0 * torch.sigmoid(torch.tensor(3.0 * (t - 3.0)))) * (1 + 0.1 * t)


def run(gate: Gate | None, deltas: list[Tensor] | None = None) -> Tensor:
    denoiser, state, x = GuidedDenoiser(model, CFG(3.0), gate=gate), State(), X
    for step in range(STEPS):
        x = x - 0.1 * denoiser(x, float(step), conditions=GIVEN, step=step, num_steps=STEPS, state=state)
        if deltas is not None:
            deltas.append(state["gate.delta.uncond"])
    return x


def error(gate: Gate) -> float:
    full = run(None)
    return float((run(gate) - full).norm() / full.norm())


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_search_finds_the_best_of_all_lists(count: int) -> None:
    budget = (STEPS + count) / (2 * STEPS)
    found = tune(run, STEPS, budget=budget)
    every = [Gate(steps=(0, *others), num_steps=STEPS) for others in itertools.combinations(range(1, STEPS), count - 1)]
    best = min(map(error, every))
    plain = min(t.error for t in found.trials if t.gate.weights is None)
    assert plain == pytest.approx(best, rel=1e-12)
    assert found.best.error <= plain and found.best.passes == budget
    assert found.best.error == pytest.approx(error(found.best.gate), rel=1e-12)
    policies = [Gate(every=-(-STEPS // count)), Gate(until=count / STEPS)]
    assert all(found.best.error < error(gate) for gate in policies)
    assert found.frontier()[0].error == found.best.error


def test_weights_are_least_squares_on_the_last_two_fresh_deltas() -> None:
    deltas: list[Tensor] = []
    run(Gate(every=1), deltas)
    steps = (0, 2, 5)
    weights = fit_weights(gram_of(deltas), steps)
    for step in range(STEPS):
        past = [s for s in steps if s <= step]
        if step in steps:
            assert weights[step] == (1.0, 0.0)
            continue
        columns = torch.stack([deltas[s].flatten() for s in past[-1:-3:-1]], 1)
        expected = torch.linalg.lstsq(columns, deltas[step].flatten()).solution
        got = torch.tensor(weights[step][: len(past[-2:])], dtype=torch.float64)
        torch.testing.assert_close(got, expected.double(), rtol=1e-6, atol=1e-9)
        left = [
            (columns @ w - deltas[step].flatten()).norm() for w in (expected, torch.eye(columns.shape[1])[0].double())
        ]
        assert left[0] <= left[1]
    assert linear_weights((0, 2), 5) == ((1.0, 0.0), (1.0, 0.0), (1.0, 0.0), (1.5, -0.5), (2.0, -1.0))
    still = torch.ones(4, 4, dtype=torch.float64)
    assert fit_weights(still, (0, 1)) == ((1.0, 0.0), (1.0, 0.0), (1.0, 0.0), (1.0, 0.0))


def test_fitted_weights_are_tried_and_can_only_help() -> None:
    deltas: list[Tensor] = []
    run(Gate(every=1), deltas)
    without, fitted = tune(run, STEPS, budget=0.75), tune(run, STEPS, budget=0.75, deltas=deltas)
    assert any(t.gate.weights == fit_weights(gram_of(deltas), t.gate.steps or ()) for t in fitted.trials)
    assert fitted.best.error <= min(t.error for t in fitted.trials) and without.best.error > 0


def test_a_search_is_deterministic_and_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    whole = tune(run, STEPS, budget=0.7)
    assert tune(run, STEPS, budget=0.7) == whole
    log, runs = tmp_path / "runs.json", list[Gate | None]()

    def counted(gate: Gate | None) -> Tensor:
        runs.append(gate)
        if len(runs) == 9:
            raise KeyboardInterrupt
        return run(gate)

    with pytest.raises(KeyboardInterrupt):
        tune(counted, STEPS, budget=0.7, log=log, name="a")
    seen: list[tuple[Trial, Trial | None]] = []
    again = tune(counted, STEPS, budget=0.7, log=log, name="a", progress=lambda *pair: seen.append(pair))
    assert again == whole and len(seen) == len(whole.trials)
    gates = [gate for gate in runs if gate is not None]
    assert len(gates) == len(whole.trials) + 1, "the one that was cut off is run again, and no other"
    runs.clear()
    runs += [None] * 10
    assert tune(counted, STEPS, budget=0.7, log=log, name="a") == whole and len(runs) == 10
    assert len(tune(counted, STEPS, budget=0.7, log=log, name="another").trials) and len(runs) > 12
    log.write_text('{"name": "a"}')
    with pytest.raises(ValueError, match=r"log: .*runs\.json holds no runs of a search"):
        tune(run, STEPS, log=log, name="a")


def test_a_metric_of_the_user_s_is_reported() -> None:
    found = tune(run, STEPS, budget=0.75, metric=lambda x: float(x.mean()))
    assert found.best.metric == pytest.approx(float(run(found.best.gate).mean()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 1}, "num_steps: expected 2 or more"),
        ({"budget": 0.5}, "budget: expected a share from 0.562"),
        ({"budget": 1.5}, "budget: expected a share"),
        ({"predictions": 1}, "predictions: expected 2 or more"),
        ({"deltas": [X]}, "deltas: expected one for each of 8 steps, got 1"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(run, **{"num_steps": STEPS, **options})
