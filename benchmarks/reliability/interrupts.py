"""Exports, trainings, results and compiled code whose process is killed, or whose disk is full, at any moment."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import torch

from .forks import HOW, Ended, aside, contents
from .isolation import isolated
from .outcome import Row, Tick, Wrong
from .works import ABSENT, REFUSED, WORKS, Work, available

__all__ = ["TITLE", "cases", "check", "merge", "replay", "run"]

TITLE = "Work that is killed at any moment: no half-written file; what goes on from there ends in the same bits"


@dataclass(frozen=True)
class _Reference:
    """Work that nothing interrupted.

    Attributes:
        template: the folder as it is before; was, becomes: what :attr:`Work.look` says before and after.
        ended: how it ended; files: by name their sizes afterwards.
    """

    template: Path
    was: Mapping[str, str]
    becomes: Mapping[str, str]
    ended: Ended
    files: Mapping[str, int]


def cases(seed: int, start: int) -> Iterator[dict[str, Any]]:
    """What is made, and when and how it is interrupted, as a share of what the whole work takes."""
    names = available()
    for index in itertools.count(start):
        rng = Random(f"{seed} interrupt {index}")
        how = rng.choice(HOW if index % 3 else ("operation",))
        yield {"work": names[index % len(names)], "how": how, "at": round(rng.random(), 4)}


def _value(work: Any, folder: Path) -> Any:
    ended = aside(work, folder)
    if ended.error:
        raise Wrong(f"work: {ended.error}")
    return ended.value


@lru_cache
def _reference(name: str) -> _Reference:
    work = WORKS[name]
    for module in work.needs:
        import_module(module)
    template = Path(tempfile.mkdtemp(prefix="fastcfg-interrupts-")) / "before"
    template.mkdir()
    atexit.register(shutil.rmtree, template.parent, ignore_errors=True)
    _value(lambda: work.before(template), template)
    folder = template.with_name("whole")
    shutil.copytree(template, folder)
    was = _value(lambda: work.look(folder), folder)
    ended = aside(lambda: work.make(folder), folder)
    if ended.error:
        raise Wrong(f"work: {name}: {ended.error}")
    return _Reference(template, was, _value(lambda: work.look(folder), folder), ended, contents(folder))


def check(case: Mapping[str, Any]) -> dict[str, Any]:
    """Interrupt the work, look at what is there, make it again, and look again."""
    torch.set_num_threads(1)
    work, reference = WORKS[case["work"]], _reference(case["work"])
    of = {"seconds": reference.ended.seconds, "operation": reference.ended.operations}
    at = case["at"] * of.get(case["how"], max(reference.files.values()))
    with tempfile.TemporaryDirectory(prefix="fastcfg-interrupts-") as place:
        folder = Path(place, "work")
        shutil.copytree(reference.template, folder)
        ended = aside(lambda: work.make(folder), folder, case["how"], at)
        _after(case, work, reference, folder, ended)
        again = aside(lambda: work.make(folder), folder)
        if again.error:
            raise Wrong(f"again: after {case['how']} {at:.4g}, {case['work']} cannot be made: {again.error}")
        found = _value(lambda: work.look(folder), folder)
        if (again.value, found) != (reference.ended.value, reference.becomes):
            raise Wrong(f"again: {case['work']} after {case['how']} {at:.4g} differs from one that nothing interrupted")
        if strays := contents(folder).keys() ^ reference.files.keys():
            raise Wrong(f"files: {sorted(strays)} are left or missing")
    return {"work": case["work"], "killed": ended.killed, "refused": bool(ended.error)}


def _after(case: Mapping[str, Any], work: Work, reference: _Reference, folder: Path, ended: Ended) -> None:
    """What must hold of the files of interrupted work."""
    looked = aside(lambda: work.look(folder), folder)
    if looked.error:
        raise Wrong(f"half: {case['work']} left what cannot be read: {looked.error}")
    for name, found in looked.value.items():
        known = {ABSENT, REFUSED, reference.was.get(name), reference.becomes.get(name)}
        if not work.steps and found not in known:
            raise Wrong(f"half: {name} of {case['work']} is neither the old nor the new one")
    if case["how"] == "full" and ended.error and not _names_a_file(ended.error, reference.files):
        raise Wrong(f"full: {case['work']}: the error names no file: {ended.error}")


def _names_a_file(error: str, files: Mapping[str, int]) -> bool:
    return any(Path(name).name in error for name in files) or "/" in error


def merge(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Interruptions by what was made."""
    found: dict[str, Any] = {"killed": sum(f["killed"] for f in figures), "no room": sum(f["refused"] for f in figures)}
    return found | {f"of {name}": sum(f["work"] == name for f in figures) for name in WORKS}


def run(seconds: float, seed: int, tick: Tick, most: int | None = None) -> Row:
    """Interruptions for so long."""
    return isolated("interrupts", __name__, seconds, seed, tick, most=most)


def replay(case: Mapping[str, Any]) -> None:
    """One interruption again."""
    check(case)
