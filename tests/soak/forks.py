"""Work in a forked process that is killed at a moment, at an operation on a file, or in the middle of a write."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOW = ("seconds", "operation", "bytes", "full")
"""What ends a process: a time, the operation of a number, a file's size; or no room is left, which is an error."""
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.listdir", "shutil.rmtree")
PATIENCE = 150.0


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        value: what the work returned, through JSON; error: what it raised; killed: whether it could do neither.
        operations: on files below the folder; seconds: that it took.
    """

    value: Any = None
    error: str = ""
    killed: bool = False
    operations: int = 0
    seconds: float = 0.0


def aside(work: Callable[[], Any], folder: Path, how: str = "", at: float = 0) -> Ended:
    """Do work in a fork of this process, and interrupt it.

    Args:
        folder: whose files' operations count.
        how: of :data:`HOW`; at: after so many seconds, before the operation of this number, at so many bytes.

    Raises:
        AssertionError: if it hangs, or dies without having been killed.
    """
    receive, send = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.close(receive)
        _be_the_child(work, folder, send, how, int(at))
    os.close(send)
    if how == "seconds":
        time.sleep(at)
        os.kill(child, signal.SIGKILL)
    said = _all_of(receive, child)
    seconds = time.monotonic() - began
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != {"seconds": signal.SIGKILL, "operation": signal.SIGKILL, "bytes": signal.SIGXFSZ}.get(how):
            raise AssertionError(f"process: died of {signal.Signals(number).name}")
        return Ended(killed=True, seconds=seconds)
    return Ended(**json.loads(said), seconds=seconds)


def _be_the_child(work: Callable[[], Any], folder: Path, send: int, how: str, at: int) -> None:
    """Never returns."""
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event in OPERATIONS and arguments and str(arguments[0]).startswith(str(folder)):
            if how == "operation" and done == at:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

    found: dict[str, Any] = {}
    try:
        sys.addaudithook(count)
        if how in ("bytes", "full"):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
            # Python ignores the signal, and gets an error as from a disk that is full.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if how == "bytes" else signal.SIG_IGN)
        found["value"] = work()
    except BaseException as error:
        found["error"] = f"{type(error).__name__}: {error}"
    finally:
        found["operations"] = done
        with os.fdopen(send, "w") as file:
            file.write(json.dumps(found))
        os._exit(0)


def _all_of(descriptor: int, child: int) -> str:
    def hangs(*_: Any) -> None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError(f"process: hangs for {PATIENCE:g} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        with os.fdopen(descriptor) as file:
            return file.read()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
