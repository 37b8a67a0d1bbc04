"""Files: written whole or not at all, weights as safetensors with JSON metadata, nothing unpickled."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["load_tensors", "save_tensors", "write_atomically"]

_KEY = "fastcfg"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a temporary file beside ``path`` and renames it, so that no reader ever sees half a file."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and JSON-serialisable metadata as one safetensors file, atomically.

    Raises:
        ImportError: safetensors is not installed.
    """
    _, save = _safetensors()
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata={_KEY: json.dumps(metadata, sort_keys=True)}))


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
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if _KEY not in metadata:
        raise ValueError(f"{path} has no '{_KEY}' metadata: fastcfg did not write it")
    return tensors, json.loads(metadata[_KEY])


def _safetensors() -> tuple[Any, Any]:
    try:
        import safetensors
        from safetensors.torch import save
    except ImportError as error:
        raise ImportError("reading and writing weights needs safetensors: pip install safetensors") from error
    return safetensors, save
