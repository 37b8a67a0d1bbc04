"""The demo's denoiser as a graph."""

from __future__ import annotations

import torch

from fastcfg.demo.data import IMAGE_SIZE, NULL_COLOUR, NULL_DIGIT

from .models import GraphModel, Input
from .signature import BATCH, Axis

__all__ = ["demo_unet"]


def demo_unet(model: torch.nn.Module) -> GraphModel:
    """The U-Net of ``fastcfg demo``: two labels, images of one size."""
    return GraphModel(
        model,
        Input((BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)),
        {
            "digit": Input((BATCH,), torch.int64, (0, NULL_DIGIT + 1)),
            "colour": Input((BATCH,), torch.int64, (0, NULL_COLOUR + 1)),
        },
        {BATCH: Axis(1, 16, 256)},
    )
