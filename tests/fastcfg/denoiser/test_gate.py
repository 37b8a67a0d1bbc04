"""A cached delta: when it is computed anew, what is measured of it, and what the report says."""

from typing import Any

import pytest
import torch
from fastcfg_kernels.backends.torch.tiles import Moments

from fastcfg import CFG, GatedCFG, GuidedDenoiser, Rescale, ResidualCFG, Rule, State, guide, schedules
from fastcfg.denoiser import REASONS, PassReport, Sequential
from fastcfg.denoiser.gate import measure_delta

from .models import Counting, draw, labels

X = draw(2, 3, 4, 5)


class Moving:
    """``x + y * speed**step``: a delta that shrinks or grows by a known factor a step, along a fixed direction."""

    def __init__(self, speed: float) -> None:
        self.speed, self.calls = speed, 0

    def __call__(self, x: torch.Tensor, t: float, y: torch.Tensor) -> torch.Tensor:
        self.calls += x.shape[0] // 2
        return x + y.view(-1, 1, 1, 1) * self.speed**t


GIVEN = {"uncond": {"y": torch.zeros(2)}, "cond": {"y": torch.ones(2)}}


def passes(rule: Rule, model: Any, steps: int = 10, state: State | None = None, **kwargs: Any) -> list[int]:
    """Passes run at each step."""
    denoiser, state = GuidedDenoiser(model, rule, **kwargs), State() if state is None else state
    counts = []
    for step in range(steps):
        before = denoiser.passes_run
        denoiser(X, float(step), conditions=GIVEN, step=step, num_steps=steps, state=state)
        counts.append(denoiser.passes_run - before)
    assert model.calls == sum(counts)
    return counts


def test_drift_decides_how_long_a_delta_serves() -> None:
    # A delta that grows by 10 % a step moves by 1/11 of its length: 2/11 are within 0.2, 3/11 are not.
    assert passes(GatedCFG(4.0, every=100, drift=0.2), Moving(1.1)) == [2, 2, 1, 1, 2, 1, 1, 2, 1, 1]
    # One that stands still is computed twice, to see that it does, and one that runs at every step.
    assert passes(GatedCFG(4.0, every=100, drift=0.2), Moving(1.0)) == [2, 2, *[1] * 8]
    assert passes(GatedCFG(4.0, every=100, drift=0.2), Moving(2.0)) == [2] * 10
    # Never longer than `every`.
    assert passes(GatedCFG(4.0, every=4, drift=0.2), Moving(1.0)) == [2, 2, 1, 1, 1, 2, 1, 1, 1, 2]


def test_a_delta_that_has_died_out_is_computed_no_more() -> None:
    rule = GatedCFG(4.0, every=1, stop=0.05)
    denoiser, state, model = GuidedDenoiser(Moving(0.5), rule), State(), Moving(0.5)
    lengths = [measure_delta(torch.ones_like(X) * 0.5**k, torch.ones_like(X), X + 0.5**k)[1].max() for k in range(10)]
    last = next(k for k, length in enumerate(lengths) if length <= 0.05)
    for step in range(10):
        got = denoiser(X, float(step), conditions=GIVEN, step=step, num_steps=10, state=state)
        if step > last:
            assert torch.equal(got, model(X, float(step), **GIVEN["cond"]))
    assert 2 < last < 8
    assert denoiser.report() == PassReport(10, 2 * (last + 1) + (9 - last), {"stopped": 9 - last})  # type: ignore[arg-type]
    # Under a modifier that measures cond too, what is left is cond alone.
    assert passes(Rescale(rule, 0.5), Moving(0.5)) == [2] * (last + 1) + [1] * (9 - last)
    # Another run with the same state begins anew.
    denoiser(X, 0.0, conditions=GIVEN, step=0, num_steps=10, state=state)
    assert denoiser.report().run == 2 * (last + 1) + (9 - last) + 2


def test_measures_are_shares_of_norms() -> None:
    new, old, cond = draw(3, 5000, seed=1), draw(3, 5000, seed=2), draw(3, 5000, seed=3)
    n, o, c = (t.double() for t in (new, old, cond))
    other = c - n
    expected = torch.stack([
        (n - o).norm(dim=1) / n.norm(dim=1), n.norm(dim=1) / c.norm(dim=1),
        (c * other).sum(1) / (c.norm(dim=1) * other.norm(dim=1)),
    ])  # fmt: skip
    # Sums of 5,000 products in float32 tiles, a quotient and a root.
    torch.testing.assert_close(measure_delta(new, old, cond).double(), expected, rtol=2.0**-18, atol=0)
    assert measure_delta(new, new, cond.bfloat16())[0].tolist() == [0, 0, 0]
    zero = torch.zeros(2, 6)
    assert measure_delta(zero, zero, torch.ones(2, 6)).tolist() == [[0, 0], [0, 0], [1, 1]]


def test_measures_of_parts_of_samples_are_merged() -> None:
    new, old, cond = draw(2, 3, 64, seed=1), draw(2, 3, 64, seed=2), draw(2, 3, 64, seed=3)
    other: list[Moments] = []

    def with_the_other(program: Any, own: Moments) -> Moments:
        other.append(own)
        if len(other) == 1:
            return own
        return Moments(other[0].count + own.count, [], [a + b for a, b in zip(other[0].pairs, own.pairs, strict=True)])

    for part in (slice(0, 40), slice(40, 64)):
        got = measure_delta(new[..., part], old[..., part], cond[..., part], with_the_other)
    # Two sums of a few dozen products each, or one of both.
    torch.testing.assert_close(got, measure_delta(new, old, cond), rtol=2.0**-20, atol=0)


def test_what_runs_on_several_ranks_waits_for_its_measures() -> None:
    class Ranks(Sequential):
        def bind(self, rule: Rule) -> None:
            self.rule = rule

    rule = GatedCFG(4.0, drift=0.2)
    executor = Ranks()
    found = [
        GuidedDenoiser(Counting(), rule, **options)  # type: ignore[arg-type]
        for options in ({}, {"wait": True}, {"mode": executor}, {"shards": lambda program, moments: moments})
    ]
    assert [d._gating is not None and d._gating.wait for d in found] == [False, True, True, True]
    assert executor.rule == rule


def test_a_gate_inside_an_interval_begins_with_a_delta_of_its_own() -> None:
    rule = GatedCFG(schedules.Interval(4.0, 0.3, 0.8), every=3)
    # By the step alone 3 would be a refresh and 4 too late; outside of 3 ... 7 one pass is enough.
    assert passes(rule, Moving(1.1)) == [1, 1, 1, 2, 1, 1, 2, 1, 1, 1]
    denoiser, state = GuidedDenoiser(Moving(1.0), GatedCFG(schedules.Interval(4.0, 0.4, 1.0), every=3)), State()
    for step in range(10):
        got = denoiser(X, float(step), conditions=GIVEN, step=step, num_steps=10, state=state)
        full = X + (4.0 if step >= 4 else 1.0)
        torch.testing.assert_close(got, full, rtol=0, atol=2.0**-20)


def test_a_state_survives_safetensors_in_the_middle_of_a_run() -> None:
    rule = GatedCFG(4.0, every=100, drift=0.2)
    whole = passes(rule, Moving(1.1))
    denoiser, state, counts = GuidedDenoiser(Moving(1.1), rule), State(), []
    for step in range(10):
        before = denoiser.passes_run
        denoiser(X, float(step), conditions=GIVEN, step=step, num_steps=10, state=state)
        counts.append(denoiser.passes_run - before)
        saved = state.state_dict()
        assert all(isinstance(t, torch.Tensor) for t in saved.values()) and "number.gate.step.uncond" in saved
        state = State(saved)
    assert counts == whole
    state.reset()
    assert not state.numbers and not state.state_dict()


def test_a_measure_that_has_not_arrived_is_not_waited_for() -> None:
    waits: list[bool] = []

    def late(wait: bool) -> dict[str, float] | None:
        waits.append(wait)
        return {"gate.rate.uncond": 0.0} if wait or len(waits) > 2 else None

    for wait, expected in ((False, [2, 2, 1]), (True, [1, 1, 1])):
        waits.clear()
        denoiser = GuidedDenoiser(Moving(1.0), GatedCFG(4.0, every=50, drift=0.2), wait=wait)
        state = State({"gate.delta.uncond": torch.ones(2, 3, 4, 5)})
        state.numbers["gate.step.uncond"] = 3
        state.arriving = late
        assert [denoiser.plan(GIVEN, step, 9, state=state).count for step in (4, 5, 6)] == expected
        assert waits == ([False] * 3 if not wait else [True])
    state.arriving = late
    waits.clear()
    assert state.state_dict()["number.gate.rate.uncond"] == 0 and waits == [True], "what is saved is waited for"


def test_a_gated_run_and_full_guidance_agree_where_the_delta_stands_still() -> None:
    denoiser, state = GuidedDenoiser(Moving(1.0), Rescale(GatedCFG(4.0, every=5), 0.5)), State()
    for step in range(10):
        got = denoiser(X, float(step), conditions=GIVEN, step=step, num_steps=10, state=state)
        u, c = X, X + 1
        torch.testing.assert_close(got, guide(CFG(4.0, rescale=0.5), uncond=u, cond=c), rtol=0, atol=2.0**-19)


def test_the_report_says_why() -> None:
    model = Counting()
    denoiser = GuidedDenoiser(model, CFG(schedules.Interval(5.0, 0.25, 0.75)))
    given = labels("uncond", "cond")
    for step in range(8):
        denoiser(X, 0.5, conditions=given, step=step, num_steps=8)
    report = denoiser.report()
    assert (report.steps, report.run, report.saved, report.share) == (8, 12, 4, 0.75)
    assert report.saved_by == {"schedule": 4}
    assert str(report) == f"8 steps, 12 passes run, 4 saved (75 % of all run)\n  4 saved: {REASONS['schedule']}"
    denoiser(X, 0.5, conditions=given, step=0, num_steps=8)
    assert report.steps == 8, "a report does not change"
    denoiser.reset()
    assert denoiser.report() == PassReport() and denoiser.report().share == 1.0
    one = GuidedDenoiser(model, CFG(1.0))
    one(X, 0.5, conditions=given)
    same = GuidedDenoiser(model, CFG(3.0))
    same(X, 0.5, conditions={"uncond": given["cond"], "cond": given["cond"]})
    stock = GuidedDenoiser(model, ResidualCFG(1.5))
    stock(X, 0.5, conditions={"cond": given["cond"]}, state=State({"stock": X}))
    found = [d.report().saved_by for d in (one, same, stock)]
    assert found == [{"weight": 1}, {"shared": 1}, {"stock": 1}]
    assert set(REASONS) >= {reason for counter in found for reason in counter}


def test_errors_name_the_argument() -> None:
    for name in ("drift", "stop"):
        with pytest.raises(ValueError, match=f"{name}: expected a share of 0 or more, or None, got -1"):
            GatedCFG(3.0, **{name: -1})
        with pytest.raises(ValueError, match=f"{name}: expected a share"):
            GatedCFG(3.0, **{name: schedules.Ramp(1, 2)})
    with pytest.raises(ValueError, match="phase: expected one of 'auto', 'refresh', 'reuse', 'off', got 'on'"):
        GatedCFG(3.0, phase="on")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="state: the gate remembers deltas"):
        GuidedDenoiser(Counting(), GatedCFG(3.0))(X, 0.5, conditions=labels("uncond", "cond"), step=0, num_steps=4)
