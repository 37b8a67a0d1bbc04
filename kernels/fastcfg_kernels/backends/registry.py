"""The backends, in the order in which ``auto`` asks them, and which of them a call takes."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from ..call import Call
from ..formula.program import Program
from ..lerp import guide_lerp
from ..notices import warn_once
from .cpu import backend as cpu
from .cpu.entry import short_way
from .torch import backend as torch_operations
from .triton import backend as triton

__all__ = ["BACKENDS", "Backend", "choose_backend", "left", "requested_backend", "run", "run_or_leave"]

BACKENDS: dict[str, ModuleType] = {
    "triton": triton,
    "cpp": cpu,
    "torch": torch_operations,
}
"""Each has ``unavailable(device)`` and ``supports(call)``, which return a reason or None, and ``run(call)``."""

Backend = Literal["auto", "triton", "cpp", "torch"]
_BROKEN: set[Program] = set()


def requested_backend(backend: str | None) -> str:
    """Return the backend that the argument asks for, or else the environment.

    Raises:
        ValueError: for a name that is not a backend.
    """
    chosen = backend or os.environ.get("FASTCFG_BACKEND") or "auto"
    if chosen not in get_args(Backend):
        source = "backend" if backend else "environment variable FASTCFG_BACKEND"
        if chosen == "inductor":
            raise ValueError(f"{source}: 'inductor' was removed; use 'cpp', or torch.compile over guide")
        raise ValueError(f"{source}: expected one of {', '.join(get_args(Backend))}, got {chosen!r}")
    return chosen


def choose_backend(program: Program, device: torch.device, requested: str | None = None) -> str:
    """Return what a call takes: ``lerp`` (one ``torch.lerp``), ``cpp``, ``triton`` or ``torch``.

    Neither the batch nor the size of a sample plays a part.

    Args:
        requested: ``"auto"`` (default), ``"triton"``, ``"cpp"`` or ``"torch"``; the environment variable
            ``FASTCFG_BACKEND`` gives it where the argument doesn't.

    Raises:
        ValueError: for a name that is not a backend.
        RuntimeError: if a backend is asked for that can't run there.
    """
    chosen = requested_backend(requested)
    if chosen in ("auto", "torch"):
        if program.is_lerp:
            return "lerp"
        return _first(program, device) if chosen == "auto" else "torch"
    if reason := BACKENDS[chosen].unavailable(device):
        raise RuntimeError(f"backend: {chosen!r} is not available: {reason}")
    return chosen


def _first(program: Program, device: torch.device) -> str:
    """Return the first backend that a program runs on without being asked for."""
    if program in _BROKEN:
        return "torch"
    # Triton's interpreter is for tests, which ask for it.
    return next(
        n for n, b in BACKENDS.items() if not (n == "triton" and device.type == "cpu") and not b.unavailable(device)
    )


def run(call: Call, requested: str | None = None) -> list[Tensor]:
    """Run a call; where a backend fails that was not asked for, say so once and take torch operations.

    Raises:
        ValueError, RuntimeError: as :func:`choose_backend` does.
    """
    if not call.native:  # What records or traces could not see a backend that is asked for.
        return guide_lerp(call) or torch_operations.run(call)
    name = choose_backend(call.program, call.first.device, requested)
    if name == "lerp":
        if (made := guide_lerp(call)) is not None:
            return made
        name = _first(call.program, call.first.device) if requested_backend(requested) == "auto" else "torch"
    if name == "torch" or requested in ("triton", "cpp"):
        found: list[Tensor] = BACKENDS[name].run(call)
        return found
    return run_or_leave(name, call)


def run_or_leave(name: str, call: Call) -> list[Tensor]:
    """Run a call by a backend that was not asked for; where that fails, say so once and take torch operations."""
    if call.program not in _BROKEN:
        try:
            made: list[Tensor] = BACKENDS[name].run(call)
            return made
        except Exception as error:
            _leave(call.program, name, error)
    return torch_operations.run(call)


def left(program: Program) -> bool:
    """Return whether a program has left its backend for torch operations."""
    return program in _BROKEN


def _leave(program: Program, path: str, error: Exception) -> None:
    """Leave a backend for good, and say so once."""
    _BROKEN.add(program)
    short_way(program).clear()
    reason = f"{type(error).__name__}: {error}"
    warn_once(f"fastcfg: a guidance could not be built or run by {path}, the torch path is used ({reason})")
