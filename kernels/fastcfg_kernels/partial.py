"""Atomic file writes, the one place for them; removes what killed processes left."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # On Windows nothing is locked, and so nothing is taken for left behind.
    fcntl = None  # type: ignore[assignment]

__all__ = ["errors_name", "move_into_place", "partial_file", "partial_folder", "write_whole"]

_SUFFIX = ".partial"


@contextlib.contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """An empty file beside ``path``, to be written and then moved there; gone afterwards if it was not moved."""
    with _partial(path, folder=False) as made:
        yield made


@contextlib.contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """An empty folder on the file system of ``path``, gone afterwards."""
    with _partial(path, folder=True) as made:
        yield made


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that no reader ever sees half of, and that is on the disk when it has its name.

    A new file has the mode that the process's umask gives, one that is replaced keeps its own. A link stays one: what
    it leads to is written.

    Raises:
        OSError: naming ``path``, where it can't be written (a full disk, say), or is a device, a pipe or a socket,
            which would be lost; what was there is still there.
    """
    with errors_name(path):
        path = path.resolve()
        _mode_of(path)  # Before anything is written.
        with partial_file(path) as temporary:
            temporary.write_bytes(content)
            move_into_place(temporary, path)


def move_into_place(source: Path, target: Path) -> None:
    """Put a written file on the disk and then under its name, with the permissions of a file that it replaces."""
    mode = _mode_of(target)
    with source.open("rb+") as file:
        os.fsync(file.fileno())
    if mode is not None:
        os.chmod(source, mode)
    os.replace(source, target)


def _mode_of(path: Path) -> int | None:
    """The permissions of a file that is to be replaced; None where there is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is no regular file and would be lost; give another name", str(path))
    return stat.S_IMODE(status.st_mode)


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Return what can't be written (a full disk, say) is said of ``path``, not of a partial file or of none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def _partial(path: Path, *, folder: bool) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    made, lock = _make(path, folder)
    try:
        yield made
    finally:
        _remove(made)
        if lock is not None:
            os.close(lock)


def _make(path: Path, folder: bool) -> tuple[Path, int | None]:
    """A new file or folder, and the lock on it that this process holds for as long as it lives."""
    while True:
        made = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}")
        try:
            if folder:
                made.mkdir(mode=0o700)
            else:  # With the mode that the umask gives; never through a link or into what is there.
                os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666))
        except FileExistsError:
            continue
        lock = _lock(made)
        if made.exists():  # Another process may have taken it for left behind before it was locked.
            return made, lock
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock on a file or folder; None where another has it, or there are no locks."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _clear(path: Path) -> None:
    """Remove what processes that are no more have left of ``path``."""
    ours = re.compile(re.escape(f".{path.name}.") + r"\w{8,16}" + re.escape(_SUFFIX))
    for name in os.listdir(path.parent):
        if ours.fullmatch(name) and (lock := _lock(path.with_name(name))) is not None:
            _remove(path.with_name(name))
            os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
