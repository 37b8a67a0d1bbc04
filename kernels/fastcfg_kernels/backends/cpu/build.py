"""Compile C++ text with the system's compiler, once for each text, compiler and processor, and load it."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from ...notices import warn_once
from ...partial import errors_name, partial_folder

__all__ = ["built", "compiler", "load"]

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")


@cache
def compiler() -> str | None:
    """The C++ compiler: the one named by ``CXX``, else g++ or clang++. Where there is none, a warning says so once."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if sys.platform == "win32" or found is None:
        warn_once(f"fastcfg: no C++ compiler ({' or '.join(names)} is not on PATH); CPU tensors take the torch path")
        return None
    return found


@cache
def _machine() -> str:
    """What native code depends on: the processor's features, and the compiler's version."""
    features = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        features = next(
            (line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))), ""
        )
    version = subprocess.run([compiler() or "", "--version"], capture_output=True, text=True, check=True).stdout
    return features + version


@cache
def cache_folder() -> Path:
    """Where compiled code is kept: ``FASTCFG_CACHE_DIR``, else the user's cache.

    A temporary folder, gone at exit, where that can't be written, or others can write there too.
    """
    base = os.environ.get("FASTCFG_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    folder = Path(base) if base else Path.home() / ".cache"
    folder = folder / "fastcfg" / "cpp"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        others = status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if others or not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="fastcfg-cpp-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def load(source: str) -> ctypes.CDLL:
    """Return the library of a C++ text, from the cache or compiled now.

    Raises:
        RuntimeError: if there is no compiler, it does not accept the text, or its library can't be kept or loaded.
    """
    native = "-mcpu=native" if platform.machine() in ("arm64", "ppc64le") else "-march=native"
    try:
        return ctypes.CDLL(str(built(source, native, *([] if sys.platform == "darwin" else ["-fopenmp"]))))
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


def _compile(command: str, flags: list[str], source: str, folder: Path, name: str) -> Path:
    with errors_name(folder / name), partial_folder(folder / name) as scratch:
        text, made = scratch / "guide.cpp", scratch / "guide.so"
        text.write_text(source)
        done = subprocess.run([command, *flags, str(text), "-o", str(made)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command} failed: {done.stderr.strip()[:2000]}")
        return made.replace(folder / f"{name}-{_digest(made)}.so")
