"""Which path a call takes."""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch

from ..formula.program import Program
from ..notices import warn_once
from .cpu.build import compiler
from .triton import backend as triton_backend

__all__ = ["Backend", "choose_backend", "default_backend", "leave", "left", "native", "requested_backend"]

Backend = Literal["auto", "triton", "cpp", "torch"]
_BACKENDS = get_args(Backend)
_BROKEN: set[Program] = set()


def requested_backend(backend: str | None) -> str:
    """The backend that the argument asks for, or else the environment."""
    chosen = backend or os.environ.get("FASTCFG_BACKEND") or "auto"
    if chosen not in _BACKENDS:
        source = "backend" if backend else "environment variable FASTCFG_BACKEND"
        if chosen == "inductor":
            raise ValueError(f"{source}: 'inductor' was removed; use 'cpp', or torch.compile over guide")
        raise ValueError(f"{source}: expected one of {', '.join(_BACKENDS)}, got {chosen!r}")
    return chosen


def choose_backend(program: Program, device: torch.device, requested: str | None = None) -> str:
    """The path that a call takes: ``lerp``, ``cpp``, ``triton`` or ``torch``.

    Neither the batch nor the size of a sample plays a part.

    Args:
        requested: ``"auto"`` (default), ``"triton"``, ``"cpp"`` or ``"torch"``; the environment variable
            ``FASTCFG_BACKEND`` gives it where the argument doesn't.

    Raises:
        ValueError: for a name that is not a backend.
        RuntimeError: if a backend is asked for that can't run there.
    """
    chosen = requested_backend(requested)
    if chosen == "triton":
        if reason := triton_backend.unavailable(device):
            raise RuntimeError(f"backend: 'triton' is not available: {reason}")
        return "triton"
    if chosen == "cpp" and (device.type != "cpu" or compiler() is None):
        raise RuntimeError("backend: 'cpp' is native code for CPU tensors; it needs them and a C++ compiler")
    if chosen == "cpp":
        return chosen
    if program.is_lerp:
        return "lerp"
    return default_backend(program, device) if chosen == "auto" else "torch"


def default_backend(program: Program, device: torch.device) -> str:
    """The default path of what is no ``torch.lerp``."""
    if left(program):
        return "torch"
    if device.type == "cpu":
        return "torch" if compiler() is None else "cpp"
    return "triton" if triton_backend.unavailable(device) is None else "torch"


def native(program: Program) -> bool:
    """Whether a program with nothing asked for runs as native code on a CPU."""
    return not left(program) and "FASTCFG_BACKEND" not in os.environ and compiler() is not None


def left(program: Program) -> bool:
    """Whether a program was left to the torch path: see :func:`leave`."""
    return program in _BROKEN


def leave(program: Program, path: str, error: Exception) -> None:
    """Leave a path for good, and say so once."""
    _BROKEN.add(program)
    reason = f"{type(error).__name__}: {error}"
    warn_once(f"fastcfg: a guidance could not be built or run by {path}, the torch path is used ({reason})")
