"""Several processes that fill one empty cache of compiled code at once; and forked ones, after native code ran."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from .isolation import ROOT, environment, isolated
from .outcome import Row, Tick, Wrong
from .workload import KINDS, work

__all__ = ["TITLE", "cases", "check", "merge", "replay", "run"]

TITLE = "Processes that share an empty cache of compiled code, started anew, spawned and forked: the bits of one alone"
SMALL = ("guide", "scales", "denoiser")


def cases(seed: int, start: int) -> Iterator[dict[str, Any]]:
    """How many processes, how they start, and what all of them do."""
    for index in itertools.count(start):
        rng = Random(f"{seed} processes {index}")
        tasks = [[rng.choice(SMALL), rng.randrange(24)] for _ in range(2)]
        yield {"processes": rng.choice((2, 3, 4)), "start": ("new", "fork", "spawn")[index % 3], "tasks": tasks}


def results(tasks: Sequence[Sequence[Any]]) -> str:
    """All pieces of work."""
    return " ".join(work(kind, seed) for kind, seed in tasks)


def _started_anew(case: Mapping[str, Any], folder: str) -> list[str]:
    code = f"from benchmarks.reliability.processes import results; print(results({case['tasks']!r}))"
    command = [sys.executable, "-c", code]
    around = environment(FASTCFG_CACHE_DIR=folder)
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=around, cwd=ROOT)
        for _ in range(case["processes"])
    ]
    found = []
    for process in running:
        out, errors = process.communicate(timeout=150)
        if process.returncode:
            raise Wrong(f"process: ended with {process.returncode}: {errors.strip().splitlines()[-1:]}")
        found.append(out.strip())
    return found


def _child(tasks: Any, pipe: Any) -> None:
    pipe.send(results(tasks))
    pipe.close()


def _by_multiprocessing(case: Mapping[str, Any]) -> list[str]:
    """Forked after this process has used several threads of native code."""
    context = multiprocessing.get_context(case["start"])
    torch.set_num_threads(2)
    work("guide", 0)
    torch.set_num_threads(1)
    pairs = []
    for _ in range(case["processes"]):
        mine, other = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(case["tasks"], other))  # type: ignore[attr-defined]
        process.start()
        other.close()
        pairs.append((process, mine))
    found = []
    for process, mine in pairs:
        if not mine.poll(150):
            process.kill()
            raise Wrong(f"process: a {case['start']}ed one hangs")
        try:
            found.append(mine.recv())
        except EOFError:
            process.join()
            raise Wrong(f"process: a {case['start']}ed one ended with {process.exitcode}") from None
        process.join()
    return found


def check(case: Mapping[str, Any]) -> dict[str, Any]:
    """All processes at once; then this one."""
    with tempfile.TemporaryDirectory() as folder:
        found = _started_anew(case, folder) if case["start"] == "new" else _by_multiprocessing(case)
        if case["start"] == "new":
            strays = [p.name for p in Path(folder, "fastcfg", "cpp").iterdir() if p.suffix != ".so"]
            if strays:
                raise Wrong(f"cache: {strays} were left")
    expected = results(case["tasks"])
    if any(result != expected for result in found):
        raise Wrong(f"bits: {sum(r != expected for r in found)} of {len(found)} processes differ from this one")
    return {"processes": len(found), "start": case["start"], "pid": os.getpid()}


def merge(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Processes by how they started."""
    return {
        f"processes, {start}": sum(f["processes"] for f in figures if f["start"] == start)
        for start in ("new", "fork", "spawn")
    } | {"kinds of work": len(KINDS)}


def run(seconds: float, seed: int, tick: Tick, most: int | None = None) -> Row:
    """Rounds of processes for so long."""
    return isolated("processes", __name__, seconds, seed, tick, most=most)


def replay(case: Mapping[str, Any]) -> None:
    """One round again."""
    check(case)
