"""The demo's weights on disk."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..files import load_tensors, save_tensors
from .model import UNet, UNetConfig

SHIPPED = Path(__file__).parent / "checkpoints"
DENOISER = SHIPPED / "denoiser.safetensors"
CLASSIFIER = SHIPPED / "classifier.safetensors"
STUDENT = SHIPPED / "student.safetensors"


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
