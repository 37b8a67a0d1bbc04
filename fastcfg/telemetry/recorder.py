"""The recorder: which calls are recorded, where, and what a server reads of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .figures import FIGURES
from .prometheus import exposition
from .records import QUANTILES, Records
from .rings import GraphRing, Ring, Taken, Write

if TYPE_CHECKING:
    from ..denoiser.report import PassReport

__all__ = ["Mark", "Sums", "Telemetry"]

Sums = Literal["rule", "gram"]


@dataclass(frozen=True)
class Mark:
    """A recorder, and what a call is about.

    Attributes:
        step: of the sampler, or one for each sample; ids: of the samples.
    """

    telemetry: Telemetry
    step: int | Sequence[int] | None = None
    ids: Sequence[Hashable] | None = None


class Telemetry:
    """Records figures of guidance where it is computed, for a server to read without waiting for the device.

    ``guide(..., telemetry=t)``, ``guide_step``, ``guide_frames`` and ``GuidedDenoiser(..., telemetry=t)`` take it.
    Results are the same, to the bit, as without. Each recorded call leaves a record for each sample in a ring on the
    predictions' device: :data:`FIGURES`, from the sums that the rule's launch makes anyway, written by that launch.

    Args:
        every: record each so many-th call; the others cost a count on the host.
        capacity: records that a ring holds. There is one for each device and stream that guides, and one on each
            device for captured launches; nothing grows beyond them.
        sums: ``"rule"``: figures from the rule's own sums; what these do not give is NaN, and a rule without sums, as
            plain CFG is one, leaves no record. ``"gram"``: recorded calls also take the sums that are missing, in the
            same launch. Plain CFG as one ``torch.lerp`` stays that, for its bits, and gets a launch of its own for the
            sums, which reads the predictions once more.

    Captured launches (CUDA graphs) record at every replay, whatever ``every`` is. Inside of ``torch.compile`` and
    ``torch.export`` nothing is recorded or counted. Safe in threads.

    Raises:
        ValueError: naming the argument.
    """

    def __init__(self, *, every: int = 1, capacity: int = 4096, sums: Sums = "rule") -> None:
        for name, value in (("every", every), ("capacity", capacity)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if sums not in get_args(Sums):
            raise ValueError(f"sums: expected {' or '.join(map(repr, get_args(Sums)))}, got {sums!r}")
        from ..denoiser.report import PassReport  # Its package imports this one.

        self.every, self.capacity, self.sums = every, capacity, sums
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._rings: dict[Any, Ring] = {}
        self._latest: dict[Any, Taken] = {}
        self._drained: dict[Any, int] = {}
        self._calls = 0
        self._recorded = 0
        self._backends: Counter[str] = Counter()
        self._passes = PassReport()
        self._samples = 0
        self._lost = 0
        self._counts = dict.fromkeys(FIGURES, 0)
        self._totals = dict.fromkeys(FIGURES, 0.0)

    def at(self, step: int | Sequence[int] | None = None, ids: Sequence[Hashable] | None = None) -> Mark:
        """This recorder for a call, which says where the sampler is and whose the samples are.

        Args:
            step: the sampler's step, or one for each sample; ids: of the samples, anything hashable.
        """
        return Mark(self, step, ids)

    # What guidance calls.

    def due(self, device: torch.device) -> bool:
        """Count a call; whether it is one to record."""
        with self._lock:
            self._calls += 1
            return (self._calls - 1) % self.every == 0 or _capturing(device)

    def begin(self, path: str) -> int:
        """The number of a recorded call, which takes this path."""
        with self._lock:
            self._backends[path] += 1
            self._recorded += 1
            return self._recorded - 1

    def count_passes(self, run: int, saved_by: Iterable[tuple[str, int]]) -> None:
        """Count the passes of a step."""
        with self._lock:
            self._passes.count(run, saved_by)

    def write(self, figures: Tensor, write: Write) -> None:
        """Put a call's figures ``[G, F]`` into the ring of their device and stream."""
        device = figures.device
        with self._lock:
            self._ring(device).write(figures, write)

    def set_step(self, step: int, device: torch.device) -> None:
        """The sampler's step that captured launches on a device note from now on; nothing waits."""
        ring = self._rings.get((device, "graph"))
        if isinstance(ring, GraphRing):
            ring.step.fill_(step)

    def _ring(self, device: torch.device) -> Ring:
        graph = (device, "graph")
        if _capturing(device):
            if graph not in self._rings:
                raise RuntimeError(
                    "telemetry: the first recorded call on a device falls inside a CUDA graph capture, where its ring "
                    "can't be allocated; guide once before the capture"
                )
            return self._rings[graph]
        key = (device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
        if key not in self._rings:
            self._rings[key] = Ring(device, self.capacity)
            if device.type == "cuda" and graph not in self._rings:
                self._rings[graph] = GraphRing(device, self.capacity)
        return self._rings[key]

    # What a server calls.

    def read(self) -> Records:
        """The newest records that have arrived, at most what the rings hold, without waiting.

        On CUDA each call takes the copy that the one before has queued, if it is done, and queues the next: the first
        gives nothing. No other thread may be capturing a graph meanwhile, unless with
        ``capture_error_mode="thread_local"``.
        """
        with self._reading:
            for key, ring in self._known():
                self._take(key, ring)
                self._request(ring)
                if ring.device.type != "cuda":
                    self._take(key, ring)
            return Records.joined(taken.records for taken in self._latest.values())

    def drain(self) -> Records:
        """All records that were not drained before; waits for the device. ``lost`` says how many were overwritten."""
        with self._reading:
            parts = []
            for key, ring in self._known():
                if ring.device.type == "cuda":
                    torch.cuda.synchronize(ring.device)
                self._take(key, ring, wait=True)  # A copy of before.
                self._request(ring)
                self._take(key, ring, wait=True)
                taken = self._latest[key]
                parts.append(taken.since(self._drained.get(key, 0)))
                self._drained[key] = taken.end
            return Records.joined(parts)

    def summary(self, quantiles: Sequence[float] = QUANTILES) -> dict[str, dict[str, float]]:
        """Count, mean and quantiles of each figure over :meth:`read`; see :meth:`Records.summary`."""
        return self.read().summary(quantiles)

    @property
    def calls(self) -> int:
        """Calls of guidance that Python made; replays of a graph are none."""
        return self._calls

    def report(self) -> PassReport:
        """The passes that denoisers with this recorder ran and saved, by reason."""
        with self._lock:
            return self._passes.copy()

    def to_dict(self, quantiles: Sequence[float] = QUANTILES) -> dict[str, Any]:
        """Everything as numbers by name, ready for JSON; nothing waits for the device.

        ``records``, ``counts`` and ``sums`` are of all that has been read so far, ``figures`` of the newest records.
        """
        figures = self.summary(quantiles)
        with self._lock:
            report = self._passes.copy()
            return {
                "calls": self._calls,
                "recorded_calls": self._recorded,
                "backends": dict(self._backends),
                "steps": report.steps,
                "passes_run": report.run,
                "passes_saved": dict(report.saved_by),
                "records": self._samples,
                "records_lost": self._lost,
                "counts": dict(self._counts),
                "sums": dict(self._totals),
                "figures": figures,
            }

    def to_prometheus(self, labels: Mapping[str, str] | None = None) -> str:
        """:meth:`to_dict` as Prometheus' text format, version 0.0.4; nothing waits for the device.

        Args:
            labels: put on every sample, such as ``{"model": "sd15"}``.

        Raises:
            ValueError: naming ``labels``, for a name that can't be one.
        """
        return exposition(self.to_dict(), labels or {})

    def _known(self) -> list[tuple[Any, Ring]]:
        with self._lock:
            return list(self._rings.items())

    def _request(self, ring: Ring) -> None:
        with self._lock:  # On a CPU the copy is made at once, between two writes.
            ring.request()

    def _take(self, key: Any, ring: Ring, wait: bool = False) -> None:
        """Keep the records of a copy that has arrived, and count the new ones."""
        if not ring.arrived(wait):
            return
        with self._lock:
            placed = ring.placed()
        taken = ring.take(placed)
        before = self._latest.get(key)
        new = taken.since(0 if before is None else before.end)
        self._latest[key] = taken
        self._samples += len(new)
        self._lost += new.lost
        for name, column in new.figures.items():
            values = column[np.isfinite(column)]
            self._counts[name] += len(values)
            self._totals[name] += float(np.sum(values))


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
