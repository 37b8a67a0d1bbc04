"""Files: written whole or not at all, weights as safetensors with JSON metadata, nothing unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fastcfg_kernels.partial import write_whole
from torch import Tensor

__all__ = ["load_tensors", "save_tensors", "tensors_digest", "write_atomically"]

_KEY = "fastcfg"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a temporary file beside ``path`` and renames it, so that no reader ever sees half a file.

    Raises:
        OSError: naming ``path``, where it can't be written; what was there is still there.
    """
    write_whole(path, content.encode() if isinstance(content, str) else content)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and JSON-serialisable metadata as one safetensors file, atomically, with a digest of both.

    Raises:
        ImportError: safetensors is not installed.
    """
    _, save = _safetensors()
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = json.loads(json.dumps(metadata))  # As a reader will have it.
    kept = {"content": content, "sha256": _digest(contiguous, content)}
    write_atomically(path, save(contiguous, metadata={_KEY: json.dumps(kept, sort_keys=True)}))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: their names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256((json.dumps(metadata, sort_keys=True) + tensors_digest(tensors)).encode()).hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what ``save_tensors`` wrote.

    Returns:
        ``(tensors on the CPU, metadata)``.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: safetensors is not installed.
        ValueError: the file is damaged, or was not written by ``save_tensors``.
    """
    safetensors, _ = _safetensors()
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            kept = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # A header that says what no file holds (a dtype, a length) meets errors of many types in safetensors and torch.
    except (
        safetensors.SafetensorError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if _KEY not in kept:
        raise ValueError(f"{path} has no '{_KEY}' metadata: fastcfg did not write it")
    try:
        said = json.loads(kept[_KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has damaged '{_KEY}' metadata: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path} has damaged '{_KEY}' metadata: expected an object, got {type(said).__name__}")
    if not said.keys() & {"content", "sha256"}:
        return tensors, said  # Written before files had a digest.
    metadata = said.get("content")
    if not isinstance(metadata, dict) or said.get("sha256") != _digest(tensors, metadata):
        raise ValueError(f"{path} is damaged: its content is not what was written (another SHA-256)")
    return tensors, metadata


def _safetensors() -> tuple[Any, Any]:
    try:
        import safetensors
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError("reading and writing weights needs safetensors: pip install safetensors") from error
    return safetensors, save
