"""Weights on disk: safetensors with JSON metadata, written whole or not at all, read without pickle."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .model import UNet, UNetConfig

SHIPPED = Path(__file__).parent / "checkpoints"
DENOISER = SHIPPED / "denoiser.safetensors"
CLASSIFIER = SHIPPED / "classifier.safetensors"

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
    """Writes tensors and JSON-serialisable metadata as one safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata={_KEY: json.dumps(metadata, sort_keys=True)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what ``save_tensors`` wrote.

    Returns:
        ``(tensors on the CPU, metadata)``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or was not written by ``save_tensors``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if _KEY not in metadata:
        raise ValueError(f"{path} has no '{_KEY}' metadata: it is not a checkpoint of the fastcfg demo")
    return tensors, json.loads(metadata[_KEY])


def versions() -> dict[str, str]:
    """Versions of the installed packages that the numbers depend on."""
    found = {}
    for package in ("fastcfg", "torch", "diffusers", "safetensors", "mlxtend"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def save_denoiser(path: Path, model: UNet, metadata: Mapping[str, Any]) -> None:
    """Writes a denoiser's weights in float16 with its configuration."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_tensors(path, tensors, {"model": asdict(model.config), **metadata})


def load_denoiser(path: Path = DENOISER, device: torch.device | str = "cpu") -> tuple[UNet, dict[str, Any]]:
    """Reads what ``save_denoiser`` wrote.

    Returns:
        ``(model, metadata)``, the model in float32, in evaluation mode and without gradients.
    """
    tensors, metadata = load_tensors(path)
    if "model" not in metadata:
        raise ValueError(f"{path} holds no denoiser (its metadata has {sorted(metadata)})")
    model = UNet(UNetConfig(**metadata["model"]))
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False).to(device), metadata
