"""Record of what has been verified on which GPU: a small file in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from ...partial import write_whole

__all__ = ["device_key", "record", "record_path", "verified"]


def record_path() -> Path:
    """Return the path of the record, in the folder ``fastcfg`` of ``FASTCFG_CACHE_DIR`` or of the user's cache."""
    base = os.environ.get("FASTCFG_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastcfg" / "verified.json"


@cache
def _sources() -> str:
    """A digest of this folder: what was verified were these kernels, launched in this way."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def device_key(index: int) -> str:
    """A GPU with what a result on it depends on: its name and capability, torch, Triton, and the kernels' sources."""
    import triton

    properties = torch.cuda.get_device_properties(index)
    capability = f"{properties.major}.{properties.minor}"
    versions = f"torch {torch.__version__}, triton {triton.__version__}, kernels {_sources()}"
    return f"{properties.name} ({capability}), {versions}"


def _read() -> dict[str, list[str]]:
    try:
        found = json.loads(record_path().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: [str(s) for s in value] for key, value in found.items() if isinstance(value, list)}


@cache
def verified(key: str) -> frozenset[str]:
    """The strategies that passed on a device, by its :func:`device_key`; read once in a process."""
    return frozenset(_read().get(key, []))


def record(key: str, strategies: Iterable[str]) -> Path:
    """Write what passed on a device, in the place of what was there for it.

    Raises:
        OSError: if the file can't be written.
    """
    path = record_path()
    everything = {**_read(), key: sorted(strategies)}
    write_whole(path, (json.dumps(everything, indent=1) + "\n").encode())
    verified.cache_clear()
    return path
