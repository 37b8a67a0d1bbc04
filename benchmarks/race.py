"""Interleaved timing: contestants take turns in one process, and ratios are taken within a round.

What disturbs a machine for longer than a round disturbs all contestants alike, and leaves their ratios alone. The
order of a round is drawn anew: in a fixed cycle a contestant would always find the caches as the same one left them.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .peers import Call

__all__ = [
    "CudaTimer",
    "HostTimer",
    "Summary",
    "Timer",
    "WrongResult",
    "check",
    "race",
    "summarise",
    "take_turns",
    "wait_for",
]

LIMITS = {torch.bfloat16: 6.0, torch.float16: 6.0, torch.float32: 1000.0, torch.float64: 1000.0}
"""Largest error of a contestant, in roundings of its output's dtype.

It tells another formula from another order of roundings: in half precision eager peers measure up to 2.4, and in
float32, where a sum over a video's elements costs them digits, up to 60.
"""

Reading = Callable[[], Mapping[str, float]]


class WrongResult(ValueError):
    """A contestant's result is not what it should be."""


class Timer(Protocol):
    """Times one call."""

    def measure(self, call: Call) -> Reading:
        """Run ``call`` once. The reading, in milliseconds by metric, is taken when the round is over."""


def wait_for(device: str) -> Callable[[], None]:
    """Return what waits until a device has done what it was given."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


class HostTimer:
    """Wall time of a call, as ``time``: on the CPU, or until the device has done it.

    Args:
        wait: for the device; see :func:`wait_for`.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self._wait = wait

    def measure(self, call: Call) -> Reading:
        start = time.perf_counter_ns()
        call()
        self._wait()
        elapsed = (time.perf_counter_ns() - start) / 1e6
        return lambda: {"time": elapsed}


class CudaTimer:
    """Time on the GPU between two events, as ``device``, and time until the call returns, as ``host``.

    Before a call the GPU is kept busy so that the launches are queued before it comes to them: ``device`` holds no
    wait for the host.

    Args:
        device: index of the GPU; cuda: ``torch.cuda``, or what stands for it in a test.
        cold: overwrite the L2 cache before each call.
    """

    BUSY_CYCLES = 1_000_000  # About half a millisecond, longer than any contestant takes to launch.

    def __init__(self, device: int = 0, cuda: Any = torch.cuda, where: str = "cuda", *, cold: bool = True) -> None:
        self.cuda = cuda
        cache = 2 * cuda.get_device_properties(device).L2_cache_size if cold else 0
        self.flush = torch.empty(cache, dtype=torch.int8, device=where)

    def measure(self, call: Call) -> Reading:
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        self.cuda._sleep(self.BUSY_CYCLES)
        if self.flush.numel():
            self.flush.zero_()
        start.record()
        began = time.perf_counter_ns()
        call()
        host = (time.perf_counter_ns() - began) / 1e6
        end.record()

        def read() -> Mapping[str, float]:
            end.synchronize()
            return {"device": float(start.elapsed_time(end)), "host": host}

        return read


@dataclass(frozen=True)
class Summary:
    """Times of a contestant over the rounds, in milliseconds.

    Attributes:
        ratio: median over the rounds of its time ÷ the reference's time in the same round.
        ratio_p20, ratio_p80: percentiles of the same.
    """

    p20: float
    p50: float
    p80: float
    ratio: float
    ratio_p20: float
    ratio_p80: float
    rounds: int


def summarise(times: Mapping[str, Sequence[float]], reference: str) -> dict[str, Summary]:
    """Summaries by contestant.

    Args:
        times: for each contestant its time in each round.

    Raises:
        ValueError: if the numbers of rounds differ, or are zero.
    """
    rounds = {len(t) for t in times.values()}
    if len(rounds) != 1 or not min(rounds):
        raise ValueError(f"times: expected the same number of rounds of each, got {sorted(rounds)}")
    base = np.asarray(times[reference])
    found = {}
    for name, samples in times.items():
        p20, p50, p80 = map(float, np.percentile(samples, [20, 50, 80]))
        low, ratio, high = map(float, np.percentile(np.asarray(samples) / base, [20, 50, 80]))
        found[name] = Summary(p20, p50, p80, ratio, low, high, len(samples))
    return found


def check(result: Tensor, exact: Tensor, dtype: torch.dtype, allowed: float = 0.0) -> float:
    """The error of a result, root mean square, in roundings of ``dtype`` (uniform ones, ``eps * rms / sqrt(12)``).

    Args:
        allowed: error that is no fault, relative to the root mean square, where it is more than :data:`LIMITS`.

    Raises:
        WrongResult: for another shape or dtype, a value that is not finite, or an error above :data:`LIMITS` and what
            is allowed (16 times as much for a single element, which may be several times the root mean square itself).
    """
    if result.shape != exact.shape or result.dtype != dtype:
        raise WrongResult(f"expected {list(exact.shape)} of {dtype}, got {list(result.shape)} of {result.dtype}")
    error = result.double() - exact
    unit = torch.finfo(dtype).eps / math.sqrt(12)
    rounding = unit * float(exact.square().mean().sqrt())
    units = float(error.square().mean().sqrt()) / rounding
    worst = float(error.abs().max()) / rounding
    # Written so that NaN fails.
    limit = max(LIMITS[dtype], allowed / unit)
    if not (units <= limit and worst <= 16 * limit):
        raise WrongResult(f"error of {units:.3g} roundings, at worst {worst:.3g}; the limit is {limit:g}")
    return units


def race(
    calls: Mapping[str, Call],
    exact: Tensor,
    dtype: torch.dtype,
    timer: Timer,
    *,
    rounds: int,
    warmup: int = 3,
    beside: Mapping[str, Call] | None = None,
    allowed: Mapping[str, float] | None = None,
) -> tuple[dict[str, dict[str, list[float]]], dict[str, float], dict[str, str]]:
    """Check the contestants, and time those whose result is right.

    Args:
        exact: what all should compute, in float64.
        rounds: rounds in which each runs once; warmup: rounds before them that are not counted.
        beside: what computes something else, timed in the same rounds and not checked.
        allowed: by contestant the relative error that is no fault; see :func:`check`.

    Returns:
        ``(times, errors, refused)``: by metric and contestant the time in each round; by contestant the error in
        roundings; by contestant why it was not timed.
    """
    errors: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, call in calls.items():
        try:
            errors[name] = check(call(), exact, dtype, (allowed or {}).get(name, 0.0))
        except Exception as error:  # Whatever goes wrong in a peer is its result, not the end of the run.
            refused[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    racing = {name: calls[name] for name in errors}
    return take_turns({**racing, **(beside or {})}, timer, rounds=rounds, warmup=warmup), errors, refused


def take_turns(
    calls: Mapping[str, Call], timer: Timer, *, rounds: int, warmup: int = 3
) -> dict[str, dict[str, list[float]]]:
    """Time contestants in turns, unchecked: by metric and contestant the time in each round.

    Args:
        rounds: rounds in which each runs once; warmup: rounds before them that are not counted.
    """
    racing = list(calls)
    times: dict[str, dict[str, list[float]]] = {}
    order = random.Random(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(warmup + rounds if racing else 0):
            order.shuffle(racing)
            readings = {name: timer.measure(calls[name]) for name in racing}
            for name in calls:
                for metric, value in readings[name]().items():
                    if turn >= warmup:
                        times.setdefault(metric, {}).setdefault(name, []).append(value)
    finally:
        if collecting:
            gc.enable()
    return times
