"""Cases in a process of their own, so that one that crashes or hangs is a failure and not the end."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from .outcome import Failure, Row, Tick

__all__ = ["environment", "isolated"]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 180.0
"""Seconds without a word after which a process hangs."""
LOST = "process"


def environment(**more: str) -> dict[str, str]:
    """This process's, for a child that finds the same packages, and Triton's interpreter where there is no GPU."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    found.setdefault("GOMP_SPINCOUNT", "0")
    if not Path("/dev/nvidiactl").exists():
        found["TRITON_INTERPRET"] = "1"
    return found | more


def isolated(
    name: str,
    module: str,
    seconds: float,
    seed: int,
    tick: Tick,
    *,
    most: int | None = None,
    patience: float = PATIENCE,
) -> Row:
    """Make a module's cases until the time is over.

    The module has ``cases(seed, start)``, mappings from number ``start`` on, ``check(case)``, which returns figures by
    name or raises, and ``merge(figures)`` of all of them.

    Args:
        most: cases at most; patience: seconds for one.
    """
    started = time.monotonic()
    failures: list[Failure] = []
    figures: list[Mapping[str, Any]] = []
    seen: Counter[str] = Counter()
    done = 0
    while (left := seconds - (time.monotonic() - started)) > 0 and (most is None or done < most):
        running: Mapping[str, Any] | None = None
        count = "" if most is None else str(most - done)
        command = [sys.executable, "-m", f"{__package__}.child", module, str(left), str(seed), str(done), count]
        # A file, for a pipe that nobody reads stops who writes into it.
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, env=environment(), cwd=ROOT, start_new_session=True
            ) as child,
        ):
            for line in _lines(child, patience):
                if "begin" in line:
                    running = line["begin"]
                    continue
                running, done = None, done + 1
                tick(done)
                if "failed" in line:
                    kind = line["failed"][:40]
                    seen[kind] += 1
                    if seen[kind] <= 3:  # One cause fails in many cases.
                        failures.append(Failure(name, line["failed"], line["case"]))
                else:
                    figures.append(line["figures"])
            hung = child.poll() is None and not _ended(child, min(10.0, patience))
            if hung:
                os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()[-1:]
        if running is not None or code:
            why = "hangs" if hung else f"died: {signal.Signals(-code).name if code < 0 else f'exit {code}'} {said}"
            failures.append(Failure(name, f"{LOST} {why}", running or {}))
            done += 1
            if len(failures) > 20 or running is None:
                break
        if not code and not hung:
            break
    merged = import_module(module).merge(figures)
    merged["distinct failures"] = len(seen)
    return Row(name, done, time.monotonic() - started, failures, merged)


def _ended(child: subprocess.Popen[bytes], patience: float) -> bool:
    try:
        child.wait(patience)
    except subprocess.TimeoutExpired:
        return False
    return True


def _lines(child: subprocess.Popen[bytes], patience: float) -> Iterator[dict[str, Any]]:
    """What a child says, until it ends or says nothing for too long."""
    assert child.stdout is not None
    rest, descriptor = b"", child.stdout.fileno()
    while select.select([descriptor], [], [], patience)[0]:
        part = os.read(descriptor, 1 << 16)
        if not part:
            return
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            if line.startswith(b"{"):
                yield json.loads(line)


def speak(module: str, seconds: float, seed: int, start: int, most: int | None, say: Callable[[str], None]) -> None:
    """The child's side."""
    made = import_module(module)
    started = time.monotonic()
    for number, case in enumerate(made.cases(seed, start)):
        if time.monotonic() - started > seconds or (most is not None and number >= most):
            return
        say(json.dumps({"begin": case}))
        try:
            say(json.dumps({"figures": made.check(case)}))
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            small = made.smaller(case, error) if hasattr(made, "smaller") else case
            say(json.dumps({"failed": what, "case": small}))
