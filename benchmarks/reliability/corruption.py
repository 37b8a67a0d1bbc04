"""Files of weights, states, graphs, plans, caches and results that are damaged, and then read."""

from __future__ import annotations

import atexit
import itertools
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from shutil import copytree, rmtree
from typing import Any

import torch

from .damage import DAMAGES, damaged
from .isolation import isolated
from .kept import KEPT, names
from .outcome import Row, Tick, Wrong

__all__ = ["TITLE", "cases", "check", "merge", "replay", "run"]

TITLE = "Damaged files: an error that names the file or the exact content, never other numbers, nothing unpickled"
_unpickled: list[str] = []


@dataclass(frozen=True)
class _Whole:
    """A folder with a file that nothing happened to, and what reading it gives."""

    folder: Path
    said: str


def cases(seed: int, start: int) -> Iterator[dict[str, Any]]:
    """A file and a damage."""
    here = names()
    for index in itertools.count(start):
        rng = Random(f"{seed} damage {index}")
        damage = rng.choice((*DAMAGES, "bit", "byte", "truncated", "pickle"))
        yield {"file": here[index % len(here)], "damage": damage, "seed": rng.randrange(2**31)}


@lru_cache
def _whole(name: str) -> _Whole:
    kept = KEPT[name]
    folder = Path(tempfile.mkdtemp(prefix="fastcfg-damage-")) / "whole"
    folder.mkdir()
    atexit.register(rmtree, folder.parent, ignore_errors=True)
    kept.make(folder)
    return _Whole(folder, kept.read(folder))


@lru_cache
def _watch() -> None:
    """Note what is unpickled from now on, in this process."""
    sys.addaudithook(
        lambda event, arguments: _unpickled.append(str(arguments)) if event == "pickle.find_class" else None
    )


def check(case: Mapping[str, Any]) -> dict[str, Any]:
    """Damage a copy, and read it."""
    torch.set_num_threads(1)
    _watch()
    kept, whole = KEPT[case["file"]], _whole(case["file"])
    with tempfile.TemporaryDirectory(prefix="fastcfg-damage-") as place:
        folder, trap = Path(place, "copy"), Path(place, "trap")
        copytree(whole.folder, folder)
        (file,) = folder.glob(kept.file)
        before = file.read_bytes()
        content = damaged(before, case["damage"], case["seed"], str(trap))
        file.write_bytes(content)
        _unpickled.clear()
        error: Exception | None = None
        said = ""
        try:
            said = kept.read(folder)
        except Exception as raised:
            error = raised
        if trap.exists() or _unpickled:
            raise Wrong(f"unpickled: {file.name}: {_unpickled[:3]}")
        if error is not None:
            _check_error(error, file.name, kept.recovers)
        elif kept.signed and said != whole.said:
            raise Wrong(f"silent: {file.name} was read, and is not what it was")
    return {"file": case["file"], "refused": error is not None, "changed": content != before}


def _check_error(error: Exception, file: str, recovers: bool) -> None:
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if recovers:
        raise Wrong(f"unrecovered: {file}: {text}") from error
    # Weights apart are part of their graph, which is what a caller named.
    if not isinstance(error, ValueError | OSError) or file.removesuffix(".data") not in text:
        raise Wrong(f"unclear: {file}: {text}") from error


def merge(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many were damaged, refused, and read as they were before."""
    changed = [f for f in figures if f["changed"]]
    return {
        "damaged": len(changed),
        "refused": sum(f["refused"] for f in changed),
        "read or made anew": sum(not f["refused"] for f in changed),
        "kinds of file": len({f["file"] for f in figures}),
        "kinds of damage": len(DAMAGES) + 1,
    }


def run(seconds: float, seed: int, tick: Tick, most: int | None = None) -> Row:
    """Damaged files for so long."""
    return isolated("files", __name__, seconds, seed, tick, most=most)


def replay(case: Mapping[str, Any]) -> None:
    """One damage again."""
    check(case)
