"""Files that have to be there, and their hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["existing_file", "sha256_of"]


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def existing_file(name: str, path: Path | str) -> Path:
    """``path`` if there is such a file.

    Raises:
        FileNotFoundError: naming the argument.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: expected a file, there is none at {path}")
    return path
