"""From a network's time per pass to a fleet of GPUs: a model short enough to check by hand.

A replica serves one call at a time. A step costs the passes of its slowest GPU, the transfer of what the others
predicted, the combine and the scheduler; a call costs its steps and a fixed part. :data:`LEFT_OUT` is what the model
does not know. ``python -m benchmarks.fleet`` fills it from the recorded results and prints the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from fastcfg.validate import number

__all__ = ["LEFT_OUT", "Outcome", "Parts", "Setup", "latency_ms", "mean_wait", "outcomes", "servers_needed", "setups"]

LEFT_OUT = (
    "Quality: gating and students change the images; the gating and distillation results say by how much.",
    "Memory: whether the network, or a batch of passes, fits on a GPU.",
    "Batches across requests: a call's images arrive together, and the next call waits. A large network fills a GPU "
    "with one image, and its batch gain is then 1.",
    "Overlap: transfer, combine, text encoder and image decoder wait for the passes, and no GPU does two things.",
    "Start-up, compilation, loading of weights, failures, and the network between users and GPUs.",
    "Training: what a student costs before it serves.",
    "Bursts: arrivals are random but steady, and the wait is that of exponential service times; calls of equal length "
    "wait about half as long.",
)


def _part(unit: str, default: Any, low: float = 0.0, high: float | None = None, positive: bool = False) -> Any:
    return field(default=default, metadata={"unit": unit, "low": low, "high": high, "positive": positive})


@dataclass(frozen=True)
class Parts:
    """What a call is made of, on one GPU unless it says otherwise.

    Attributes:
        pass_ms: one pass of the network on a call's images, milliseconds.
        steps: of the sampler; passes: of a guided step; images: of a call.
        batch_gain: two passes one after another ÷ both as one batch; 1 where a pass fills the GPU. Each further pass
            of a batch costs as much more as the second.
        combine_ms: guidance of one step, milliseconds; scheduler_ms: everything else of a step that is no pass.
        fixed_ms: text encoding and image decoding of a call, milliseconds.
        prediction_mb: one prediction of the network, megabytes; link_gb_per_s: between two GPUs, gigabytes a second;
            link_us: of one exchange however small, microseconds, the ranks' agreement included.
        imbalance: time of the slowest GPU's passes ÷ what its share costs on a GPU of its own.
        student_cost: a student's pass ÷ the teacher's, for an adapter that is not merged; 1 for a merged one.
        utilisation: most of its time that a replica may be busy, so that a queue stays short.
    """

    pass_ms: float = _part("ms", 180.0, positive=True)
    steps: int = _part("steps", 30, low=1)
    passes: int = _part("passes a step", 2, low=1)
    images: int = _part("images a call", 1, low=1)
    batch_gain: float = _part("×", 1.0, low=0.5, high=2.0)
    combine_ms: float = _part("ms a step", 0.02)
    scheduler_ms: float = _part("ms a step", 0.1)
    fixed_ms: float = _part("ms a call", 150.0)
    prediction_mb: float = _part("MB", 0.524)
    link_gb_per_s: float = _part("GB/s", 50.0, positive=True)
    link_us: float = _part("µs", 500.0)
    imbalance: float = _part("×", 1.0, low=1.0)
    student_cost: float = _part("×", 1.0, positive=True)
    utilisation: float = _part("share", 0.7, high=1.0, positive=True)

    def __post_init__(self) -> None:
        for part in fields(self):
            value, limits = getattr(self, part.name), part.metadata
            number(part.name, value, limits["low"], limits["high"])
            if limits["positive"] and not value:
                raise ValueError(f"{part.name}: expected more than 0, got {value}")
            if part.type == "int" and not isinstance(value, int):
                raise TypeError(f"{part.name}: expected an int, got {type(value).__name__}")

    def passes_ms(self, count: int, *, batched: bool) -> float:
        """Milliseconds of so many passes on one GPU."""
        another = 2 / self.batch_gain - 1 if batched else 1.0
        return self.pass_ms * (1 + another * (count - 1))

    def transfer_ms(self, predictions: int) -> float:
        """Milliseconds to receive so many predictions in one exchange."""
        # A megabyte at a gigabyte a second is a millisecond.
        return self.link_us / 1e3 + predictions * self.prediction_mb / self.link_gb_per_s


@dataclass(frozen=True)
class Setup:
    """One way to serve.

    Attributes:
        batched: the passes of a step on one GPU as one batch, not one after another.
        ranks: GPUs that share the passes of a step (CFG-parallel); replicas: independent copies of all that.
        kept: share of the steps that run every pass, 0 to 1; the others run one (gating).
        student: one pass a step, of a distilled network, without a combine.
        free_link: no transfer and no imbalance: the bound of what ranks can give.
    """

    name: str
    batched: bool = False
    ranks: int = 1
    replicas: int = 1
    kept: float = 1.0
    student: bool = False
    free_link: bool = False

    def __post_init__(self) -> None:
        for name in ("ranks", "replicas"):
            number(name, getattr(self, name), 1)
        number("kept", self.kept, 0, 1)

    @property
    def gpus(self) -> int:
        return self.ranks * self.replicas

    def passes_per_step(self, parts: Parts) -> float:
        """Passes of the network a step, the mean over a call."""
        return 1.0 if self.student else 1 + (parts.passes - 1) * self.kept


def latency_ms(parts: Parts, setup: Setup) -> float:
    """Milliseconds of a call that does not wait."""
    return parts.fixed_ms + parts.steps * (_passes_ms(parts, setup) + _combine_ms(parts, setup) + parts.scheduler_ms)


def _passes_ms(parts: Parts, setup: Setup) -> float:
    """Passes of a step and what the GPUs send for them, the mean over a call."""
    one = parts.pass_ms
    if setup.student:
        return one * parts.student_cost
    largest = -(-parts.passes // setup.ranks)
    full = parts.passes_ms(largest, batched=setup.batched)
    if setup.ranks > 1 and parts.passes > 1 and not setup.free_link:
        # Who ran fewest passes is sent most.
        fewest = parts.passes // setup.ranks
        full = full * parts.imbalance + parts.transfer_ms(parts.passes - fewest)
    return setup.kept * full + (1 - setup.kept) * one


def _combine_ms(parts: Parts, setup: Setup) -> float:
    return 0.0 if setup.student or parts.passes == 1 else parts.combine_ms


@dataclass(frozen=True)
class Outcome:
    """What a setup gives.

    Attributes:
        images_per_second: of all its GPUs, none of them ever idle.
        relative: images a second and GPU ÷ the first setup's; speedup: the first setup's latency ÷ its own.
        combine_share: of the latency.
        fleet: GPUs that serve the demand within the utilisation, in whole replicas; wait_s: mean wait there for a
            free replica, seconds. None without a demand.
    """

    setup: str
    passes_per_step: float
    gpus: int
    latency_s: float
    images_per_second: float
    images_per_second_per_gpu: float
    relative: float
    speedup: float
    combine_share: float
    fleet: int | None = None
    wait_s: float | None = None


def servers_needed(offered: float, utilisation: float) -> int:
    """Servers of which each is busy at most ``utilisation`` of the time.

    Args:
        offered: arrivals a second times seconds of service.
    """
    # Quotients that are whole but for their rounding are whole.
    return max(1, math.ceil(offered / utilisation - 1e-9))


def mean_wait(servers: int, offered: float) -> float:
    """Mean wait in an M/M/c queue, in service times; infinite where it only grows.

    Erlang's C formula, by the recursion of his B: ``1/B(c) = 1 + c / (a B(c - 1))``.

    Args:
        servers: c; offered: a, arrivals a second times seconds of service.
    """
    number("servers", servers, 1)
    number("offered", offered, 0)
    if offered >= servers:
        return math.inf
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    busy = offered / servers
    return blocked / (1 - busy * (1 - blocked)) / (servers - offered)


def setups() -> Iterator[Setup]:
    """What people choose between; the first is what the others are measured by."""
    yield Setup("all passes, one after another")
    yield Setup("all passes, one batch", batched=True)
    yield Setup("2 replicas", replicas=2)
    yield Setup("CFG-parallel", ranks=2)
    yield Setup("CFG-parallel, free link, balanced", ranks=2, free_link=True)
    for kept in (0.5, 0.35, 0.25):
        yield Setup(f"gated, {kept:.0%} of the steps in full", kept=kept)
    yield Setup("gated, 35%, CFG-parallel", kept=0.35, ranks=2)
    yield Setup("student", student=True)
    yield Setup("student, 2 replicas", student=True, replicas=2)


def outcomes(parts: Parts, chosen: Sequence[Setup] | None = None, demand: float | None = None) -> list[Outcome]:
    """What each setup gives, beside the first.

    Args:
        chosen: default :func:`setups`; demand: images a second to serve, None for no fleet.

    Raises:
        ValueError: naming ``demand`` unless it is positive.
    """
    if demand is not None and not number("demand", demand, 0):
        raise ValueError(f"demand: expected more than 0 images a second, got {demand}")
    found: list[Outcome] = []
    base: tuple[float, float] | None = None
    for setup in setups() if chosen is None else chosen:
        seconds = latency_ms(parts, setup) / 1e3
        per_gpu = parts.images / seconds / setup.ranks
        base = base or (per_gpu, seconds)
        fleet, wait = None, None
        if demand is not None:
            offered = demand / parts.images * seconds
            servers = servers_needed(offered, parts.utilisation)
            fleet, wait = servers * setup.ranks, mean_wait(servers, offered) * seconds
        found.append(
            Outcome(
                setup.name,
                setup.passes_per_step(parts),
                setup.gpus,
                seconds,
                per_gpu * setup.gpus,
                per_gpu,
                per_gpu / base[0],
                base[1] / seconds,
                parts.steps * _combine_ms(parts, setup) / 1e3 / seconds,
                fleet,
                wait,
            )
        )
    return found


if __name__ == "__main__":
    from .fleet_command import app

    app()
