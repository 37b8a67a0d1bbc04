"""A made-up clock: where a step's time goes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import timelines
from benchmarks.timelines import FUSED, GUIDANCE, NEXT, PASSES, SCHEDULER, Timeline


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timelines.time, "perf_counter", lambda: made.now / 1e3)
    return made


def run(timeline: Timeline, clock: SimpleNamespace, *, steps: int, guidance: float = 2.0, fused: bool = False) -> None:
    """Two passes of 10 ms with 1 ms between them, guidance, a scheduler of 3 ms, 0.5 ms until the next pass."""

    def spend(ms: float) -> None:
        clock.now += ms

    denoise, step = timeline.passing(spend), timeline.stepping(spend)
    for _ in range(steps):
        clock.now += 0.5
        denoise(10.0)
        clock.now += 1.0
        denoise(10.0)
        clock.now += guidance
        if fused:
            timeline.stepped()
        else:
            step(3.0)


def test_parts_of_a_step(clock: SimpleNamespace) -> None:
    timeline = Timeline()
    clock.now = 1000.0
    run(timeline, clock, steps=4)
    assert len(timeline.steps) == 3, "the first warms up"
    assert dict(timeline.parts()) == pytest.approx({NEXT: 1.5, PASSES: 20.0, GUIDANCE: 2.0, SCHEDULER: 3.0})
    assert timeline.ms_per_step == pytest.approx(26.5)


def test_a_fused_step_has_one_part_after_its_passes(clock: SimpleNamespace) -> None:
    timeline = Timeline()
    run(timeline, clock, steps=3, fused=True)
    assert dict(timeline.parts()) == pytest.approx({NEXT: 1.5, PASSES: 20.0, FUSED: 2.0})


def test_what_interrupts_one_step_is_not_in_the_median(clock: SimpleNamespace) -> None:
    timeline = Timeline()
    run(timeline, clock, steps=3)
    run(timeline, clock, steps=1, guidance=500.0)
    run(timeline, clock, steps=2)
    assert timeline.parts()[GUIDANCE] == pytest.approx(2.0) and timeline.ms_per_step == pytest.approx(26.5)


def test_the_device_is_waited_for_at_each_mark(clock: SimpleNamespace) -> None:
    def wait() -> None:
        clock.now += 1.0

    timeline = Timeline(wait)
    run(timeline, clock, steps=2)
    # A pass ends when its work is done, and so do the guidance and the scheduler's step.
    assert timeline.parts()[PASSES] == pytest.approx(22.0) and timeline.parts()[SCHEDULER] == pytest.approx(4.0)


def test_watched_objects_are_as_before() -> None:
    class Thing:
        def forward(self) -> int:
            return 1

        def step(self) -> int:
            return 2

    thing, timeline = Thing(), Timeline()
    with pytest.raises(KeyError), timeline.watching(thing, thing):
        assert (thing.forward(), thing.step()) == (1, 2) and "forward" in vars(thing)
        raise KeyError
    assert not vars(thing)


def test_a_step_without_a_pass_is_no_step() -> None:
    timeline = Timeline()
    timeline.stepped()
    with pytest.raises(RuntimeError, match="without a pass"):
        timeline.stepped()
