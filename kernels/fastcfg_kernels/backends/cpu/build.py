"""Compile C++ text with the system's compiler, once for each text, compiler and processor, and load it."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from ...notices import warn_once
from ...partial import errors_name, partial_folder

__all__ = ["built", "compiler", "load"]

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")


@cache
def compiler() -> tuple[str, ...] | None:
    """The C++ compiler as a command: that of ``CXX`` (``ccache g++``, say), else g++ or clang++.

    Where there is none, a warning says so once.
    """
    given = os.environ.get("CXX", "").strip()
    try:
        names = [tuple(shlex.split(given))] if given else [("g++",), ("clang++",)]
    except ValueError:  # A quote that is not closed: the name of a file, perhaps.
        names = [(given,)]
    if given and shutil.which(given):  # A path with blanks.
        names = [(given,)]
    found = next(((path, *words) for name, *words in names if (path := shutil.which(name))), None)
    if sys.platform == "win32" or found is None:
        told = " or ".join(" ".join(name) for name in names)
        warn_once(f"fastcfg: no C++ compiler ({told} is not on PATH); CPU tensors take the torch path")
        return None
    return found


PATIENCE = 300.0
"""Seconds that the compiler has for a text, which takes it one or two; one that hangs is stopped then."""


def _run(command: Sequence[str], patience: float) -> tuple[int, str]:
    """Run a command; returns its status and what it printed, in whatever encoding.

    Raises:
        OSError: if it can't be started. RuntimeError: if it does not end; it and what it started are stopped.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            printed, _ = process.communicate(timeout=patience)
        except BaseException as error:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"{command[0]} did not end in {patience:.0f} s and was stopped") from None
            raise
    return process.returncode, printed.decode(errors="replace")


@cache
def _machine() -> str:
    """Return what native code depends on: the processor's features, and the compiler's version."""
    features = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        features = next(
            (line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))), ""
        )
    command = compiler() or ("",)
    status, version = _run([*command, "--version"], 30.0)
    if status:
        raise RuntimeError(f"{' '.join(command)} --version failed: {version.strip()[:2000]}")
    return features + " ".join(command) + version


@cache
def cache_folder() -> Path:
    """Return where compiled code is kept: ``FASTCFG_CACHE_DIR``, else the user's cache.

    A temporary folder, gone at exit, where that can't be written, or others could put something there: it and every
    folder above it have to be this user's or root's, and writable for no one else (or sticky, as ``/tmp`` is).
    """
    base = os.environ.get("FASTCFG_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    folder = Path(base) if base else Path.home() / ".cache"
    folder = folder / "fastcfg" / "cpp"
    try:
        for parent in (*reversed(folder.parents), folder):
            if not parent.exists():
                parent.mkdir(exist_ok=True, mode=0o700)
        folder = folder.resolve()
        own = folder.stat()
        if own.st_uid != os.getuid() or _others_write(own.st_mode) or not os.access(folder, os.W_OK):
            raise PermissionError(folder)
        for parent in folder.parents:
            status = parent.stat()
            shared = _others_write(status.st_mode) and not status.st_mode & stat.S_ISVTX
            if shared or status.st_uid not in (0, os.getuid()):
                raise PermissionError(parent)
    except (OSError, RuntimeError):  # RuntimeError: links that lead in a circle.
        folder = Path(tempfile.mkdtemp(prefix="fastcfg-cpp-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _others_write(mode: int) -> bool:
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH))


@cache
def load(source: str) -> ctypes.CDLL:
    """Return the library of a C++ text, from the cache or compiled now.

    Raises:
        RuntimeError: if there is no compiler, it does not accept the text, or its library can't be kept or loaded.
    """
    native = "-mcpu=native" if platform.machine() in ("arm64", "ppc64le") else "-march=native"
    flags = [native, *([] if sys.platform == "darwin" else ["-fopenmp"])]
    library = built(source, *flags)
    try:
        return ctypes.CDLL(str(library))
    except OSError:  # Whole, and yet of another system (a shared home, an older libstdc++).
        library.unlink(missing_ok=True)
    try:
        return ctypes.CDLL(str(built(source, *flags)))
    except OSError as error:
        raise RuntimeError(f"native code can't be loaded: {error}") from error


def built(source: str, *more: str) -> Path:
    """Return the file of a C++ text's library, from the cache or compiled now.

    Args:
        more: flags of the compiler beside those of all.

    Raises:
        RuntimeError: as :func:`load` does.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("there is no C++ compiler")
    flags = [*_FLAGS, *more]
    try:
        folder = cache_folder()
        name = hashlib.sha256("\0".join([source, *flags, _machine()]).encode()).hexdigest()[:32]
        return _kept(folder, name) or _compile(command, flags, source, folder, name)
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"native code can't be compiled, kept or loaded: {error}") from error


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def _kept(folder: Path, name: str) -> Path | None:
    """The library ``NAME-DIGEST.so`` of an earlier run, whose bytes are still those of its digest.

    What was cut short or changed would crash the process that loads it, and is removed.
    """
    for library in sorted(folder.glob(f"{name}-*.so")):
        status = library.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and _digest(library) == library.stem[-16:]:
            return library
        library.unlink(missing_ok=True)
    return None


def _compile(command: Sequence[str], flags: list[str], source: str, folder: Path, name: str) -> Path:
    with errors_name(folder / name), partial_folder(folder / name) as scratch:
        text, made = scratch / "guide.cpp", scratch / "guide.so"
        text.write_text(source)
        status, printed = _run([*command, *flags, str(text), "-o", str(made)], PATIENCE)
        if status or not made.exists():
            raise RuntimeError(f"{' '.join(command)} failed: {printed.strip()[:2000]}")
        return made.replace(folder / f"{name}-{_digest(made)}.so")
