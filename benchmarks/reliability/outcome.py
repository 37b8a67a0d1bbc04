"""What a run found, and how to see it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Failure", "Row", "Run", "Tick", "Wrong"]

Tick = Callable[[int], None]
"""Called with the number of calls made so far."""


class Wrong(AssertionError):
    """Something that must hold does not."""


@dataclass(frozen=True)
class Failure:
    """What does not hold, and the case that shows it.

    Attributes:
        run: the run's name; what: one line; case: as JSON.
    """

    run: str
    what: str
    case: Mapping[str, Any]

    @property
    def command(self) -> str:
        """What to type to see it again."""
        return f"python -m benchmarks.reliability --run {self.run} --case {shlex.quote(json.dumps(self.case))}"


@dataclass
class Row:
    """One run.

    Attributes:
        calls: what it did so often; figures: numbers and short texts by name.
    """

    run: str
    calls: int
    seconds: float
    failures: list[Failure] = field(default_factory=list)
    figures: dict[str, float | int | str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the record: failures as their number, and what they were where there are any."""
        told = [{"what": f.what, "case": dict(f.case), "command": f.command} for f in self.failures]
        row = {"run": self.run, "calls": self.calls, "seconds": round(self.seconds, 1)}
        return row | {"failures": len(self.failures), "figures": self.figures} | ({"found": told} if told else {})


class Run(Protocol):
    """A module that is a run."""

    TITLE: str
    """One line: what must hold."""

    def run(self, seconds: float, seed: int, tick: Tick) -> Row:
        """Run for about so long."""
        ...

    def replay(self, case: Mapping[str, Any]) -> None:
        """Make one case again; raises what it finds."""
        ...
