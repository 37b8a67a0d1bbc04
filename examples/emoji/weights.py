"""The weights on disk, and the noise schedule they were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcfg.files import load_tensors, save_tensors

from .model import ModelConfig, TextUNet

SHIPPED = Path(__file__).parent
PARTS = 2


def part(folder: Path, index: int) -> Path:
    """Return the path of one of the files that hold the weights, counted from 0."""
    return folder / f"weights-{index + 1}-of-{PARTS}.safetensors"


@cache
def alphas() -> Tensor:
    """Return the cosine schedule's squared signal, ``alphas_cumprod``, float32 ``[1000]`` (arXiv 2102.09672)."""
    t = torch.arange(1001, dtype=torch.float64) / 1000
    course = torch.cos((t + 0.008) / 1.008 * torch.pi / 2).square()
    betas = (1 - course[1:] / course[:-1]).clamp(max=0.999)
    return (1 - betas).cumprod(0).float()


def trained_with(folder: Path = SHIPPED) -> dict[str, Any]:
    """Return the training's settings, as the weights' metadata has them."""
    training: dict[str, Any] = load_tensors(part(folder, 0))[1]["training"]
    return training


def save_weights(folder: Path, model: TextUNet, metadata: Mapping[str, Any]) -> None:
    """Write a model's weights in float16, in ``PARTS`` files of about the same size."""
    halves = {name: tensor.half() for name, tensor in model.state_dict().items()}
    total, seen = sum(tensor.numel() for tensor in halves.values()), 0
    parts: list[dict[str, Tensor]] = [{} for _ in range(PARTS)]
    for name, tensor in halves.items():
        parts[min(PARTS - 1, seen * PARTS // total)][name] = tensor
        seen += tensor.numel()
    for index, tensors in enumerate(parts):
        save_tensors(part(folder, index), tensors, {"model": asdict(model.config), **metadata})


def load_weights(folder: Path = SHIPPED) -> TextUNet:
    """Read what ``save_weights`` wrote, in float32, in evaluation mode and without gradients.

    Raises:
        FileNotFoundError: a part is missing.
        ValueError: a part is damaged, or the parts do not make one model.
    """
    tensors: dict[str, Tensor] = {}
    for index in range(PARTS):
        found, metadata = load_tensors(part(folder, index))
        tensors |= found
    config = metadata["model"]
    model = TextUNet(ModelConfig(**{**config, "widths": tuple(config["widths"])}))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"the {PARTS} files in {folder} do not make one model: {error}") from error
    return model.eval().requires_grad_(False)
