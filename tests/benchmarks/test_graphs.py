"""Copies that take turns, and graphs of them; ``torch.cuda`` is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmarks import kernels
from benchmarks.caches import copies, copy_call, in_turn, last_level_cache, rotations
from benchmarks.cases import RULES, Case, contestants, draw, exact
from benchmarks.graphs import GraphTimer, capture
from benchmarks.report import Environment, Report

CASE = Case(RULES[1], (1, 4, 8, 8), "fp32")


class FakeCuda:
    """Runs what is captured at once and remembers it; a replay ticks the clock."""

    def __init__(self) -> None:
        self.clock, self.capturing, self.sleeps = 0, False, 0

    def Stream(self) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    def stream(self, stream: object) -> nullcontext[None]:
        return nullcontext()

    def CUDAGraph(self) -> SimpleNamespace:
        def replay() -> None:
            self.clock += 64

        return SimpleNamespace(replay=replay)

    @contextmanager
    def graph(self, graph: object) -> Iterator[None]:
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False

    def _sleep(self, cycles: int) -> None:
        self.sleeps += 1

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(at=None, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.clock)
        event.elapsed_time = lambda end: float(end.at - event.at)
        return event


@pytest.mark.parametrize(("size", "cache", "number"), [(1, 10, 11), (3, 10, 5), (10, 10, 2), (100, 10, 2)])
def test_the_others_fill_the_cache_between_two_uses(size: int, cache: int, number: int) -> None:
    assert rotations(size, cache) == number and (number - 1) * size >= cache


def test_copies_are_equal_and_apart() -> None:
    found = copies(draw(CASE, "cpu"), 3)
    assert len({p["cond"].data_ptr() for p in found}) == 3
    assert all(torch.equal(p[name], found[0][name]) for p in found for name in ("uncond", "cond"))


def test_turns_are_shared_by_all_contestants() -> None:
    seen: list[int] = []

    def bound(k: int):
        return lambda: seen.append(k)

    calls = in_turn({name: [bound(k) for k in range(3)] for name in "ab"})
    for name in "abbaab":
        calls[name]()
    assert seen == [0, 1, 2, 0, 1, 2]
    one = [bound(7)]
    assert in_turn({"a": one})["a"] is one[0]


def test_the_copy_moves_its_bytes() -> None:
    call = copy_call(1000, "cpu")
    assert call().nbytes == 500 and not call().any()


def test_a_cache_is_found_or_assumed() -> None:
    assert last_level_cache("cpu") >= 1 << 20


def test_capture_takes_turns_and_replays() -> None:
    cuda, seen = FakeCuda(), []

    def bound(k: int):
        def call() -> torch.Tensor:
            if cuda.capturing:
                seen.append(k)
            return torch.tensor(float(k))

        return call

    replay = capture([bound(k) for k in range(3)], 5, cuda)
    assert seen == [0, 1, 2, 0, 1] and replay() == 1 and cuda.clock == 64
    assert seen == [0, 1, 2, 0, 1], "a replay runs no Python"


def test_fewer_iterations_than_copies_are_an_error() -> None:
    with pytest.raises(ValueError, match="iterations"):
        capture([lambda: torch.ones(1)] * 3, 2, FakeCuda())


def test_graph_time_is_of_one_call() -> None:
    cuda = FakeCuda()
    replay = capture([lambda: torch.ones(1)], 32, cuda)
    assert GraphTimer(32, cuda).measure(replay)() == {"graph": 2.0} and cuda.sleeps == 1


def test_graph_race_leaves_out_who_cannot_be_captured() -> None:
    cuda, report = FakeCuda(), Report(Environment("cpu", "a processor", 1, "abc", {}))
    predictions = draw(CASE, "cpu")
    found = contestants(CASE, strategies=False)

    def waits() -> torch.Tensor:
        if cuda.capturing:
            raise RuntimeError("operation not permitted\nwhile capturing")
        return predictions["cond"]

    bound = {name: [found[name](predictions)] for name in ("fastcfg", "eager")}
    bound |= {"waits": [waits], kernels.COPY: [copy_call(CASE.least, "cpu")]}
    kernels.graph_race(CASE, bound, exact(CASE, predictions), report, {}, 2, cuda)
    assert [(row.provider, row.metric, row.p50, row.copy) for row in report.rows] == [
        ("fastcfg", "graph", 2.0, 2.0),
        ("eager", "graph", 2.0, 2.0),
    ]
    assert report.left_out == [(str(CASE), "waits, captured", "operation not permitted")]
