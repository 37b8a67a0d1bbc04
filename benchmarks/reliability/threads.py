"""Many Python threads whose first calls come at the same time: programs, caches and native code are made in a race."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from random import Random
from typing import Any

import torch
from fastcfg_kernels.backends.cpu import backend as native
from fastcfg_kernels.backends.cpu import build
from fastcfg_kernels.formula.program import compiled

from .isolation import isolated
from .outcome import Row, Tick, Wrong
from .workload import KINDS, work

__all__ = ["TITLE", "cases", "check", "merge", "replay", "run"]

TITLE = "Threads that call at once, caches empty: the bits of one thread alone, and no dead lock"


def cases(seed: int, start: int) -> Iterator[dict[str, Any]]:
    """How many threads, and what each of them does."""
    for index in itertools.count(start):
        rng = Random(f"{seed} threads {index}")
        tasks = [[rng.choice(list(KINDS)), rng.randrange(24)] for _ in range(rng.randint(3, 6))]
        yield {"threads": rng.choice((2, 4, 8, 16)), "tasks": tasks, "torch_threads": rng.choice((1, 1, 2))}


def forget() -> None:
    """Empty what is made once in a process, as at its first call."""
    compiled.cache_clear()
    native._function.cache_clear()
    build.load.cache_clear()


def check(case: Mapping[str, Any]) -> dict[str, Any]:
    """All threads begin together, each with another piece of work; then one thread does them all."""
    count, tasks = case["threads"], [(kind, seed) for kind, seed in case["tasks"]]
    torch.set_num_threads(case["torch_threads"])
    forget()
    together = threading.Barrier(count)
    found: list[list[tuple[tuple[str, int], str]]] = [[] for _ in range(count)]
    raised: list[BaseException] = []

    def body(own: int) -> None:
        try:
            stream = torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else nullcontext()
            together.wait(60)
            with stream:
                for k in range(len(tasks)):
                    task = tasks[(own + k) % len(tasks)]
                    found[own].append((task, work(*task)))
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=body, args=(own,), daemon=True) for own in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(1)
    if raised:
        raise raised[0]
    expected = {task: work(*task) for task in set(tasks)}
    for own, results in enumerate(found):
        for task, result in results:
            if result != expected[task]:
                raise Wrong(f"bits: {task} in thread {own} of {count} differs from one thread alone")
    return {"works": count * len(tasks), "threads": count}


def merge(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pieces of work, and the most threads."""
    return {
        "pieces of work": sum(f["works"] for f in figures),
        "most threads": max((f["threads"] for f in figures), default=0),
    }


def run(seconds: float, seed: int, tick: Tick, most: int | None = None) -> Row:
    """Rounds of threads for so long."""
    return isolated("threads", __name__, seconds, seed, tick, most=most)


def replay(case: Mapping[str, Any]) -> None:
    """One round again."""
    check(case)
