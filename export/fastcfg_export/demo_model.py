"""The demo's denoiser as a graph."""

from __future__ import annotations

from typing import Any

import torch

from fastcfg.demo.data import IMAGE_SIZE, NULL_COLOUR, NULL_DIGIT
from fastcfg.distill import Convention, ScaledNetwork, family_of

from .models import GraphModel, Input
from .signature import BATCH, Axis, dtype_name

__all__ = ["demo_unet"]


def demo_unet(model: torch.nn.Module) -> GraphModel:
    """The U-Net of ``fastcfg demo``: two labels, images of one size; of a student, the guidance scale besides."""
    config: Any = model.config
    module, scale = model, None
    if config.scale_form:
        # The graph is the serving: what its dtype rounds is what the network was trained on.
        serving: Any = dtype_name(next(model.parameters()).dtype)
        convention = Convention(config.scale_form, config.scale_dim, serving)
        module, scale = ScaledNetwork(model, family_of(model), convention), "scale"
    return GraphModel(
        module,
        Input((BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)),
        {
            "digit": Input((BATCH,), torch.int64, (0, NULL_DIGIT + 1)),
            "colour": Input((BATCH,), torch.int64, (0, NULL_COLOUR + 1)),
        },
        {BATCH: Axis(1, 16, 256)},
        scale=scale,
    )
