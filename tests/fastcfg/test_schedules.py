"""Schedules against the formulas in the oracles, on every axis."""

import json
import math

import pytest
import torch
from conformance.oracles import classifier_free as oracle
from hypothesis import given
from hypothesis import strategies as st

from fastcfg import CFG, Rule, Schedule, schedules

STEPS = [1, 2, 3, 11, 50]


@pytest.mark.parametrize("num_steps", STEPS)
def test_curves_over_the_steps(num_steps: int) -> None:
    for step in range(num_steps):
        linear = schedules.Ramp(10, 2).at(step, num_steps)
        assert linear == oracle.linear_schedule(step, num_steps, 10, 2)
        cosine = schedules.Cosine(10, 2).at(step, num_steps)
        assert math.isclose(cosine, oracle.cosine_schedule(step, num_steps, 10, 2), rel_tol=1e-14)
        assert schedules.Step(9, 3).at(step, num_steps) == oracle.step_schedule(step, num_steps, 9, 3)
        r = oracle.progress(step, num_steps)
        assert math.isclose(schedules.Exponential(10, 2).at(step, num_steps), 10 * 0.2**r, rel_tol=1e-14)
        assert math.isclose(schedules.Power(10, 2, 3).at(step, num_steps), 10 - 8 * r**3, rel_tol=1e-14)


@pytest.mark.parametrize("kind", [schedules.Ramp, schedules.Cosine, schedules.Exponential, schedules.Power])
def test_ends_are_exact_up_and_down(kind: type[Schedule]) -> None:
    for start, end in ((10.0, 2.0), (1.1, 7.3)):
        curve = kind(start, end)  # type: ignore[call-arg]
        values = [curve.at(step, 30) for step in range(30)]
        assert values[0] == start and values[-1] == end and curve.at(0, 1) == start
        assert values == sorted(values, reverse=start > end)


def test_the_form_in_t_does_not_reach_its_end() -> None:
    steps = 1000
    form = schedules.OnAxis(schedules.Ramp(10, 2), "t")
    for step in (0, 1, 500, 999):
        exact = oracle.linear_schedule_in_time(steps - step, steps, 2, 10)
        assert math.isclose(form.at(step, steps), exact, rel_tol=1e-14)
    assert form.at(0, steps) == 10 and math.isclose(form.at(999, steps), 2.008)
    assert form.at(0, 1) == 10
    switch = schedules.OnAxis(schedules.Step(9, 3, 0.5), "t")
    for step in range(10):
        assert switch.at(step, 10) == oracle.step_schedule_in_time(10 - step, 9, 3, 5)


@given(steps=st.integers(2, 60), first=st.floats(1, 100), share=st.floats(0.001, 0.5))
def test_the_axes_agree_where_the_steps_are_even_on_them(steps: int, first: float, share: float) -> None:
    last = first * share
    for curve in (schedules.Ramp(10, 2), schedules.Cosine(1, 6)):
        for step in range(steps):
            r = step / (steps - 1)
            expected = curve.at(step, steps)
            assert schedules.OnAxis(curve, "step").at(step, steps) == expected
            even = schedules.OnAxis(curve, "sigma", first, last).at(step, steps, sigma=first + (last - first) * r)
            ratio = schedules.OnAxis(curve, "logsnr", first, last).at(step, steps, sigma=first * share**r)
            assert math.isclose(even, expected, abs_tol=1e-10) and math.isclose(ratio, expected, abs_tol=1e-10)


def test_beyond_the_axis_a_curve_holds_its_ends() -> None:
    for axis in ("sigma", "logsnr"):
        curve = schedules.OnAxis(schedules.Ramp(10, 2), axis, 8.0, 0.5)
        assert curve.at(0, 4, sigma=20.0) == 10 and curve.at(3, 4, sigma=0.01) == 2 and curve.at(3, 4, sigma=0.0) == 2
    upward = schedules.OnAxis(schedules.Ramp(10, 2), "logsnr", 0.5, 8.0)
    assert upward.at(0, 4, sigma=0.0) == 10 and upward.at(3, 4, sigma=9.0) == 2


@pytest.mark.parametrize("strict", [False, True])
def test_windows_by_step(strict: bool) -> None:
    window = schedules.Interval(5, 0.25, 0.75, 1, "strict" if strict else "half_open")
    for num_steps in STEPS:
        for step in range(num_steps):
            inside = oracle.in_interval(step, num_steps, 0.25, 0.75, strict=strict)
            assert window.at(step, num_steps) == (5 if inside else 1)


def test_windows_by_noise_level() -> None:
    sigmas = [3.0, 2.0, 1.0, 0.5, 0.0]
    paper = schedules.SigmaInterval(5, 0.5, 2)
    by_snr = schedules.SigmaInterval(5, -2 * math.log(2), -2 * math.log(0.5), axis="logsnr")
    for sigma in sigmas:
        expected = oracle.sigma_interval_schedule(sigma, 5, low=0.5, high=2)
        assert paper.at(0, 9, sigma=sigma) == by_snr.at(0, 9, sigma=sigma) == expected
    strict, closed = (schedules.SigmaInterval(5, 0.5, 2, window=w) for w in ("strict", "closed"))
    assert [strict.at(0, 9, sigma=s) for s in sigmas] == [1, 1, 5, 1, 1]
    assert [closed.at(0, 9, sigma=s) for s in sigmas] == [1, 5, 5, 5, 1]


def test_a_rule_passes_the_noise_level_on() -> None:
    rule = CFG(schedules.SigmaInterval(5, 0.5, 2), rescale=schedules.Ramp(0, 1))
    assert rule.at(1, 3, sigma=1.0) == CFG(5.0, rescale=0.5)
    assert rule.at(2, 3, sigma=torch.tensor(3.0)) == CFG(1.0, rescale=1.0)
    with pytest.raises(ValueError, match="sigma: SigmaInterval runs on the noise level"):
        rule.at(1, 3)
    assert CFG(schedules.Ramp(1, 3)).at(1, 3, sigma=0.5) == CFG(2.0)


def test_a_schedule_of_ones_own_needs_no_noise_level() -> None:
    class Sawtooth(Schedule):
        def at(self, step: int, num_steps: int, *, sigma: float | None = None) -> float:
            return float(step % 3)

    assert CFG(Sawtooth()).at(4, 9) == CFG(1.0)
    del Schedule.kinds["Sawtooth"]


def test_listed_values() -> None:
    listed = schedules.Values.of(lambda step, n: 7 - step / n, 4)
    assert [listed.at(i, 4) for i in range(4)] == [7, 6.75, 6.5, 6.25]
    with pytest.raises(ValueError, match="num_steps: the schedule lists 4 steps, got 5"):
        listed.at(0, 5)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.Constant(3),
        schedules.Ramp(10, 2),
        schedules.Exponential(10, 2),
        schedules.Power(10, 2, 0.5),
        schedules.Step(9, 3),
        schedules.Values((1, 2.5)),
        schedules.Interval(5, 0.1, 0.9, window="strict"),
        schedules.SigmaInterval(5, 0.5, 2, window="closed"),
        schedules.OnAxis(schedules.Cosine(1, 5), "logsnr", 14.6, 0.03),
    ],
    ids=lambda s: type(s).__name__,
)
def test_json_round_trip(schedule: Schedule) -> None:
    assert Schedule.from_dict(json.loads(json.dumps(schedule.to_dict()))) == schedule
    rule = CFG(schedule)
    assert Rule.from_json(rule.to_json()) == rule and hash(Rule.from_json(rule.to_json())) == hash(rule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.Exponential(1, 0), "Exponential: start, end: expected numbers above zero"),
        (lambda: schedules.Power(1, 0, 0), "Power: exponent: expected a number above zero"),
        (lambda: schedules.Values(()), "Values: values: expected one or more numbers"),
        (lambda: schedules.Values((1, "x")), r"Values: values\[1\]: expected a number, got str"),
        (lambda: schedules.Interval(5, window="open"), "Interval: window: expected one of half_open, strict"),
        (lambda: schedules.SigmaInterval(5, 2, 1), "SigmaInterval: low, high: expected low < high, got 2.0, 1.0"),
        (lambda: schedules.SigmaInterval(5, 1, 2, axis="snr"), "SigmaInterval: axis: expected one of sigma, logsnr"),
        (lambda: schedules.OnAxis(schedules.Interval(5)), "OnAxis: curve: expected a curve"),
        (lambda: schedules.OnAxis(schedules.Ramp(1, 2), "time"), "OnAxis: axis: expected one of step, t"),
        (lambda: schedules.OnAxis(schedules.Ramp(1, 2), "logsnr"), "first, last: expected two noise levels above"),
        (lambda: schedules.OnAxis(schedules.Ramp(1, 2), "sigma", 1, 1), "first, last: expected two noise levels of"),
        (lambda: schedules.SigmaInterval(5, 1, 2).at(0, 1, sigma=-1), "sigma: expected a noise level of 0 or more"),
        (lambda: schedules.SigmaInterval(5, 1, 2).at(0, 1, sigma=torch.ones(2)), "sigma: expected one number"),
        (lambda: schedules.SigmaInterval(5, 1, 2).at(0, 1, sigma="1"), "sigma: expected a number, got str"),
        (lambda: Schedule.from_dict({"schedule": "Line"}), "schedule: expected one of"),
        (lambda: Schedule.from_dict({"schedule": "Linear", "begin": 1}), "schedule: Ramp: .*begin"),
    ],
)
def test_errors_name_the_argument(make: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()  # type: ignore[operator]


def test_a_tensor_on_a_device_is_refused() -> None:
    with pytest.raises(TypeError, match="sigma: expected a number, got a tensor on meta"):
        schedules.SigmaInterval(5, 1, 2).at(0, 1, sigma=torch.ones((), device="meta"))  # type: ignore[arg-type]


def test_a_former_name_loads_for_good_and_warns_in_code() -> None:
    """JSON that another version wrote keeps loading; code learns the new name."""
    assert schedules.Schedule.from_dict({"schedule": "Linear", "start": 1.0, "end": 3.0}) == schedules.Ramp(1.0, 3.0)
    rule = CFG.from_json('{"type": "CFG", "scale": {"schedule": "Linear", "start": 1.0, "end": 3.0}}')
    assert rule == CFG(schedules.Ramp(1.0, 3.0))
    with pytest.warns(DeprecationWarning, match=r"schedules\.Linear is now fastcfg\.schedules\.Ramp"):
        assert schedules.Linear is schedules.Ramp
    with pytest.raises(AttributeError, match="Slope"):
        _ = schedules.Slope
