"""Files that are damaged, and work that is killed at any moment or meets a full disk."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from soak.examples import examples
from soak.forks import HOW, Ended, aside
from soak.works import ABSENT, WORKS

HEAD, SECTOR = 2048, 512
FILES = [(name, pattern) for name, work in WORKS.items() for pattern in work.files]
SLOW = ("distillation", "export", "plan")
_unpickled: list[str] = []


def marked(name: str, *more: str) -> Any:
    return pytest.param(name, *more, marks=[pytest.mark.slow] * (name in SLOW), id="-".join((name, *more)))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.makedirs, (self.folder,)


def place(content: bytes | bytearray, rng: Random) -> int:
    """Half of all damage is done in the head, which says how the rest is to be read."""
    return rng.randrange(max(1, min(len(content), HEAD) if rng.random() < 0.5 else len(content)))


def spoil(content: bytes, damage: str, rng: Random, trap: str) -> bytes:
    made, at = bytearray(content), place(content, rng)
    sector = at // SECTOR * SECTOR
    match damage:
        case "bit":
            made[at] ^= 1 << rng.randrange(8)
        case "byte":
            made[at] = rng.choice((0, 0xFF, ord("9"), ord("{")))
        case "truncated":
            del made[at:]
        case "grown":
            made += rng.randbytes(rng.choice((1, 8, SECTOR)))
        case "zeros":
            made[sector : sector + SECTOR] = bytes(len(made[sector : sector + SECTOR]))
        case "dropped":
            del made[at : at + rng.choice((1, 4, SECTOR))]
        case "noise":
            made[:] = rng.randbytes(len(made))
        case "pickle":
            made[:] = pickle.dumps({"state": Trap(trap)})
    return bytes(made)


DAMAGES = ("bit", "byte", "truncated", "grown", "zeros", "dropped", "noise", "pickle")


@lru_cache
def whole(name: str) -> tuple[Path, str]:
    """A folder with files that nothing happened to, and what reading them gives."""
    folder = Path(tempfile.mkdtemp(prefix="fastcfg-soak-")) / "whole"
    folder.mkdir()
    WORKS[name].make(folder)
    return folder, WORKS[name].read(folder)


@lru_cache
def watch() -> None:
    """Note what is unpickled from now on, in this process."""
    sys.addaudithook(lambda event, given: _unpickled.append(str(given)) if event == "pickle.find_class" else None)


@pytest.mark.parametrize(("name", "pattern"), [marked(*file) for file in FILES])
@given(st.sampled_from(DAMAGES), st.randoms(use_true_random=False))
@examples(4)
def test_damage(name: str, pattern: str, damage: str, rng: Random) -> None:
    """An error that names the file, or exactly what was written; never other numbers, nothing unpickled."""
    note(damage)
    check_damage(name, pattern, damage, rng)


def check_damage(name: str, pattern: str, damage: str, rng: Random) -> None:
    watch()
    work, (folder, said) = WORKS[name], whole(name)
    with tempfile.TemporaryDirectory(prefix="fastcfg-soak-") as parent:
        copy, trap = Path(parent, "copy"), Path(parent, "trap")
        shutil.copytree(folder, copy)
        (file,) = copy.glob(pattern)
        file.write_bytes(spoil(file.read_bytes(), damage, rng, str(trap)))
        _unpickled.clear()
        try:
            found = work.read(copy)
        except (ValueError, OSError) as error:
            # Weights apart are part of their graph, which is what a caller named.
            assert file.name.removesuffix(".data") in str(error) and not work.recovers, error
        else:
            assert found == said, f"{file.name} was read, and is not what it was"
        assert not trap.exists() and not _unpickled


def value(work: Callable[[], Any], folder: Path) -> Any:
    ended = aside(work, folder)
    assert not ended.error, ended.error
    return ended.value


@lru_cache
def reference(name: str) -> tuple[Path, str, str, Ended, dict[str, int]]:
    """Work that nothing interrupted: the folder before, what is read before and after, how it ended, its files."""
    work = WORKS[name]
    template = Path(tempfile.mkdtemp(prefix="fastcfg-soak-")) / "before"
    template.mkdir()
    value(lambda: work.before(template), template)
    folder = template.with_name("whole")
    shutil.copytree(template, folder)
    was = ABSENT if work.recovers else value(lambda: work.read(folder), folder)
    ended = aside(lambda: work.make(folder), folder)
    assert not ended.error, ended.error
    return template, was, value(lambda: work.read(folder), folder), ended, contents(folder)


def contents(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", [marked(name) for name in WORKS if name != "plan"])
@given(st.sampled_from(HOW), st.floats(0, 1))
@examples(2, share=0.5)
def test_interruption(name: str, how: str, share: float) -> None:
    """No half-written file; made again it ends in the same bits, with nothing left over; a full disk is an error."""
    work, (template, was, becomes, ended, files) = WORKS[name], reference(name)
    at = share * {"seconds": ended.seconds, "operation": ended.operations}.get(how, max(files.values()))
    with tempfile.TemporaryDirectory(prefix="fastcfg-soak-") as parent:
        folder = Path(parent, "work")
        shutil.copytree(template, folder)
        stopped = aside(lambda: work.make(folder), folder, how, at)
        found = value(lambda: work.read(folder), folder)
        assert work.steps or found in (was, becomes, ABSENT), "neither the old nor the new one"
        if how == "full" and stopped.error:
            assert any(Path(file).name in stopped.error for file in files) or "/" in stopped.error, stopped.error
        assert value(lambda: work.make(folder), folder) == ended.value
        assert value(lambda: work.read(folder), folder) == becomes
        assert contents(folder).keys() == files.keys(), "a file is left over or missing"


def test_a_defect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(WORKS["weights"], read=lambda folder: str((folder / "weights.safetensors").read_bytes()[-9:]))
    monkeypatch.setitem(WORKS, "weights", broken)  # type: ignore[arg-type]
    whole.cache_clear()
    with pytest.raises(AssertionError, match="was read, and is not what it was"):
        check_damage("weights", "weights.safetensors", "noise", Random(0))
    whole.cache_clear()
