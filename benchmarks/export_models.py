"""Small denoisers with the architectures of the real ones, random weights: for tests and measurements of the export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fastcfg_export import Axis, GraphModel, Input
from torch import Tensor, nn

__all__ = ["ARCHITECTURES", "SD15", "Toy", "build", "toy"]


class Toy(nn.Module):
    """``x`` convolved, times a condition, plus ``t``: every input counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, *, embedding: Tensor) -> Tensor:
        gain = embedding.mean(1)[:, :, None, None]
        result: Tensor = self.conv(x) * gain + (t / 1000).to(x.dtype)[:, None, None, None]
        return result


def toy(dtype: torch.dtype = torch.float32) -> GraphModel:
    """:class:`Toy` with open batch, height, width and tokens."""
    torch.manual_seed(0)
    side = Axis(4, 16, 256, 4, 8)
    return GraphModel(
        Toy().to(dtype).eval(),
        Input(("batch", 4, "height", "width")),
        {"embedding": Input(("batch", "tokens", 4))},
        {"height": side, "width": side, "tokens": Axis(1, 7, 64)},
    )


def _unet(**options: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    small = {
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**small, **options})


def _sdxl(**options: Any) -> nn.Module:
    # 16 of pooled text and 6 ids of 8.
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return _unet(**added, projection_class_embeddings_input_dim=64, use_linear_projection=True, **options)


def _sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
    )


def _flux(**options: Any) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    small = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 4, 8),
    }
    return FluxTransformer2DModel(**{**small, **options})


def _wan() -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=128,
    )


def _qwen() -> nn.Module:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        num_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 4, 8)
    )


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "unet": _unet,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "wan": _wan,
    "qwen": _qwen,
    "lcm": lambda: _unet(time_cond_proj_dim=32),
    "flux-guidance": lambda: _flux(guidance_embeds=True),
}
"""Constructors by name; the last two are students, which take a scale themselves."""


def build(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """One of them, always with the same weights; what training begins at zero, which would hide its inputs, is not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ARCHITECTURES[name](**options).eval().requires_grad_(False)
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model if dtype == torch.float32 else model.to(dtype)


SD15: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
}
"""Options of ``UNet2DConditionModel`` that make the size of Stable Diffusion 1.5: 860 million parameters."""
