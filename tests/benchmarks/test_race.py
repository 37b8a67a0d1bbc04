"""The statistics of a race, the check before it, and the timers. No test asserts a time."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch

from benchmarks.race import CudaTimer, HostTimer, WrongResult, check, race, summarise


class CountingTimer:
    """Runs each call and hands out times from a list."""

    def __init__(self, **times: list[float]) -> None:
        self.times = {name: iter(values) for name, values in times.items()}
        self.order: list[str] = []

    def measure(self, call):
        name = call.__name__
        call()
        self.order.append(name)
        value = next(self.times[name])
        return lambda: {"time": value}


def contestant(name: str, result: torch.Tensor):
    def call() -> torch.Tensor:
        return result

    call.__name__ = name
    return call


EXACT = torch.linspace(-2, 3, 1001, dtype=torch.float64).view(1, -1)


def test_percentiles_and_ratio_by_round() -> None:
    # The ratio of the medians is 1; in most rounds b takes twice as long.
    found = summarise({"a": [1, 2, 3, 2, 10], "b": [2, 4, 6, 1, 2]}, "a")
    assert (found["a"].p20, found["a"].p50, found["a"].p80) == pytest.approx((1.8, 2, 4.4))
    assert found["b"].p50 == 2 and found["b"].ratio == 2 and found["a"].ratio == 1
    # By round b ÷ a is 2, 2, 2, 0.5, 0.2: percentiles lie between the ordered ones.
    assert (found["b"].ratio_p20, found["b"].ratio_p80) == pytest.approx((0.44, 2))
    assert found["b"].rounds == 5


@pytest.mark.parametrize("times", [{"a": [1.0], "b": [1.0, 2.0]}, {"a": [], "b": []}])
def test_uneven_rounds_are_an_error(times: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="rounds"):
        summarise(times, "a")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_rounding_passes_the_check(dtype: torch.dtype) -> None:
    # Uniform errors of one spacing are the unit; within a binade spacings are up to twice as fine.
    assert 0.5 < check(EXACT.to(dtype), EXACT, dtype) < 1.2


@pytest.mark.parametrize(
    "wrong",
    [
        EXACT.float() * 1.001,
        EXACT.float()[:, :-1],
        EXACT,
        torch.where(EXACT[0, 5] == EXACT, 0.0, EXACT).float(),
        torch.where(EXACT[0, 5] == EXACT, torch.nan, EXACT).float(),
        torch.where(EXACT[0, 5] == EXACT, torch.inf, EXACT).float(),
    ],
    ids=["scale", "shape", "dtype", "one element", "nan", "inf"],
)
def test_wrong_results_fail_the_check(wrong: torch.Tensor) -> None:
    with pytest.raises(WrongResult):
        check(wrong, EXACT, torch.float32)


def test_what_is_allowed_is_relative_and_by_contestant() -> None:
    off = EXACT.float() * 1.01
    units = check(off, EXACT, torch.float32, allowed=0.011)
    assert units * torch.finfo(torch.float32).eps / 12**0.5 == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(WrongResult):
        check(off, EXACT, torch.float32, allowed=0.009)
    calls = {"good": contestant("good", EXACT.float()), "peer": contestant("peer", off)}
    timer = CountingTimer(good=[1, 1], peer=[2, 2])
    times, errors, refused = race(calls, EXACT, torch.float32, timer, rounds=2, warmup=0, allowed={"peer": 0.011})
    assert not refused and set(times["time"]) == set(errors) == {"good", "peer"}
    assert set(race(calls, EXACT, torch.float32, timer, rounds=0, warmup=0, allowed={"good": 1.0})[2]) == {"peer"}


def test_what_runs_beside_is_timed_and_not_checked() -> None:
    other = contestant("copy", torch.zeros(1))
    timer = CountingTimer(good=[1, 2], copy=[3, 4])
    times, errors, _ = race(
        {"good": contestant("good", EXACT.float())},
        EXACT,
        torch.float32,
        timer,
        rounds=2,
        warmup=0,
        beside={"copy": other},
    )
    assert times["time"] == {"good": [1, 2], "copy": [3, 4]} and set(errors) == {"good"}


def test_wrong_and_broken_contestants_are_refused_and_never_timed() -> None:
    def broken() -> torch.Tensor:
        raise RuntimeError("no kernel\nand a trace")

    calls = {
        "good": contestant("good", EXACT.float()),
        "wrong": contestant("wrong", EXACT.float() + 1e-3),
        "broken": broken,
    }
    timer = CountingTimer(good=[9, 1, 2])
    times, errors, refused = race(calls, EXACT, torch.float32, timer, rounds=2, warmup=1)
    assert timer.order == ["good"] * 3
    assert times == {"time": {"good": [1, 2]}}, "the warm-up counts"
    assert set(errors) == {"good"} and errors["good"] < 2
    assert refused["broken"] == "RuntimeError: no kernel" and "WrongResult" in refused["wrong"]


def test_a_race_of_nobody() -> None:
    calls = {"wrong": contestant("wrong", EXACT.float() + 1)}
    times, errors, refused = race(calls, EXACT, torch.float32, CountingTimer(), rounds=2)
    assert not times and not errors and list(refused) == ["wrong"]


def test_everyone_runs_once_a_round_in_changing_order() -> None:
    names = ("a", "b", "c")
    timer = CountingTimer(**{name: [float(i) for i in range(12)] for name in names})
    calls = {name: contestant(name, EXACT.float()) for name in names}
    times, _, _ = race(calls, EXACT, torch.float32, timer, rounds=10, warmup=2)
    turns = [tuple(timer.order[i : i + 3]) for i in range(0, 36, 3)]
    assert all(sorted(turn) == list(names) for turn in turns) and len(set(turns)) > 2
    assert all(times["time"][name] == [float(i) for i in range(2, 12)] for name in names), "rounds must line up"
    assert gc.isenabled()


def test_host_timer_runs_the_call_once() -> None:
    ran: list[int] = []
    reading = HostTimer().measure(lambda: ran.append(1))()
    assert ran == [1] and set(reading) == {"time"} and reading["time"] >= 0


class FakeCuda:
    """As much of ``torch.cuda`` as the timer uses; its clock ticks at each event."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.clock = 0

    def get_device_properties(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(L2_cache_size=64)

    def _sleep(self, cycles: int) -> None:
        self.log.append("busy")

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(at=None)

        def record() -> None:
            self.clock += 1
            event.at = self.clock
            self.log.append("event")

        event.record = record
        event.synchronize = lambda: self.log.append("wait")
        event.elapsed_time = lambda end: float(end.at - event.at)
        return event


def test_cuda_timer_flushes_before_and_waits_after_the_round() -> None:
    cuda = FakeCuda()
    timer = CudaTimer(cuda=cuda, where="cpu")
    timer.flush.fill_(1)
    assert timer.flush.numel() == 128
    seen: list[int] = []

    def call() -> torch.Tensor:
        seen.append(int(timer.flush.sum()))
        cuda.log.append("call")
        return EXACT.float()

    times, _, _ = race({"a": call, "b": call}, EXACT, torch.float32, timer, rounds=1, warmup=0)
    assert cuda.log[2:] == ["busy", "event", "call", "event"] * 2 + ["wait"] * 2, "a wait between would be timed"
    assert seen[2:] == [0, 0], "the cache was not overwritten before the call"
    assert times["device"] == {"a": [1.0], "b": [1.0]} and set(times["host"]) == {"a", "b"}


def test_a_hot_cuda_timer_leaves_the_cache_alone() -> None:
    timer = CudaTimer(cuda=FakeCuda(), where="cpu", cold=False)
    assert timer.flush.numel() == 0 and timer.measure(lambda: EXACT)()["device"] == 1.0
