"""Denoisers of diffusers as graphs: the arguments of each, under diffusers' own names, with dim 0 of the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcfg import lcm_embedding

from .models import GraphModel, Input
from .signature import BATCH, Axis

__all__ = ["ADAPTERS", "flux", "sd3", "unet", "wan"]

_VAE = 8  # Pixels for an element of a latent.


def _refuse(model: nn.Module, option: str, value: Any) -> ValueError:
    return ValueError(f"model: {type(model).__name__} with {option}={value!r} is not supported by the export")


def _sides(multiple: int, usual: int = 64, high: int = 256, pixels: int = _VAE) -> dict[str, Axis]:
    low = max(multiple, 8 // multiple * multiple)
    side = Axis(low, -(-usual // multiple) * multiple, max(high // multiple, 1) * multiple, multiple, pixels)
    return {"height": side, "width": side}


class _UNet(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        self.embedding: int | None = config.time_cond_proj_dim

    def forward(self, x: Tensor, t: Tensor, *, encoder_hidden_states: Tensor, **others: Tensor) -> Tensor:
        scale = others.pop("guidance_scale", None)
        embedded = None
        if scale is not None:
            assert self.embedding is not None
            embedded = lcm_embedding(scale, self.embedding).to(x.dtype)
        result: Tensor = self.model(
            x, t, encoder_hidden_states, timestep_cond=embedded, added_cond_kwargs=others or None, return_dict=False
        )[0]
        return result


def unet(model: nn.Module) -> GraphModel:
    """``UNet2DConditionModel``: SD 1.x and 2.x, SDXL with its added conditions, students with ``timestep_cond``."""
    config: Any = model.config
    for option in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if (value := getattr(config, option, None)) is not None:
            raise _refuse(model, option, value)
    added = config.addition_embed_type
    if added not in (None, "text_time"):
        raise _refuse(model, "addition_embed_type", added)
    width = config.cross_attention_dim
    if not isinstance(width, int):
        raise _refuse(model, "cross_attention_dim", width)
    conditions = {"encoder_hidden_states": Input((BATCH, "tokens", width))}
    if added == "text_time":
        ids = 6
        text = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        conditions |= {"text_embeds": Input((BATCH, text)), "time_ids": Input((BATCH, ids))}
    multiple = 2 ** (len(config.down_block_types) - 1)
    axes = {"tokens": Axis(1, 77, 1024), **_sides(multiple, config.sample_size or 64)}
    sample = Input((BATCH, config.in_channels, "height", "width"))
    scale = None if config.time_cond_proj_dim is None else "guidance_scale"
    return GraphModel(_UNet(model), sample, conditions, axes, scale=scale)


class _SD3(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, *, encoder_hidden_states: Tensor, pooled_projections: Tensor) -> Tensor:
        result: Tensor = self.model(x, encoder_hidden_states, pooled_projections, t, return_dict=False)[0]
        return result


def sd3(model: nn.Module) -> GraphModel:
    """``SD3Transformer2DModel``: SD 3 and 3.5; timesteps are 0 to 1000."""
    config: Any = model.config
    conditions = {
        "encoder_hidden_states": Input((BATCH, "tokens", config.joint_attention_dim)),
        "pooled_projections": Input((BATCH, config.pooled_projection_dim)),
    }
    high = config.pos_embed_max_size * config.patch_size
    axes = {"tokens": Axis(1, 154, 1024), **_sides(config.patch_size, min(128, high), high)}
    return GraphModel(_SD3(model), Input((BATCH, config.in_channels, "height", "width")), conditions, axes)


class _FluxRotary(nn.Module):
    """Flux's rotary embedding by look-up: exact float64 angles, and no float64 in the graph.

    ``ids`` are whole numbers, so that the table has every value there is.
    """

    def __init__(self, original: nn.Module, positions: int) -> None:
        super().__init__()
        axes = len(original.axes_dim)  # type: ignore[arg-type]
        cos, sin = original(torch.arange(positions, dtype=torch.float32)[:, None].expand(-1, axes))
        self.register_buffer("cos", cos.contiguous(), persistent=False)
        self.register_buffer("sin", sin.contiguous(), persistent=False)
        self.sizes: list[int] = list(original.axes_dim)  # type: ignore[arg-type]

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        index = ids.long()
        parts = []
        for table in (self.cos, self.sin):
            columns = table.split(self.sizes, dim=1)  # type: ignore[operator]
            parts.append(torch.cat([column[index[:, i]] for i, column in enumerate(columns)], dim=-1))
        return parts[0], parts[1]


class _Flux(nn.Module):
    """Flux on latents ``[B, C, H, W]``: cuts into 2×2 patches and numbers them inside the graph."""

    def __init__(self, model: nn.Module, positions: int) -> None:
        super().__init__()
        # A second body over the same weights: the caller's model keeps its own embedding.
        self.model = copy.copy(model)
        self.model._modules = {**model._modules, "pos_embed": _FluxRotary(model.pos_embed, positions)}  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        b, channels, height, width = x.shape
        rows, columns = height // 2, width // 2
        packed = x.reshape(b, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        packed = packed.reshape(b, rows * columns, channels * 4)
        down = torch.arange(rows, device=x.device)[:, None].expand(rows, columns)
        across = torch.arange(columns, device=x.device)[None, :].expand(rows, columns)
        ids = torch.stack([torch.zeros_like(down), down, across], dim=-1).reshape(rows * columns, 3)
        text = torch.zeros(encoder_hidden_states.shape[1], 3, dtype=ids.dtype, device=x.device)
        result: Tensor = self.model(
            packed, encoder_hidden_states, pooled_projections, t, ids, text, guidance, return_dict=False
        )[0]
        result = result.reshape(b, rows, columns, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return result.reshape(b, -1, height, width)


def flux(model: nn.Module) -> GraphModel:
    """``FluxTransformer2DModel`` on unpacked latents; timesteps are 0 to 1.

    A model with guidance embeddings (Flux dev) takes a scale of its own: export it without a rule as a student.
    """
    config: Any = model.config
    if config.in_channels % 4 or (config.out_channels or config.in_channels) != config.in_channels:
        raise _refuse(model, "in_channels, out_channels", (config.in_channels, config.out_channels))
    conditions = {
        "encoder_hidden_states": Input((BATCH, "tokens", config.joint_attention_dim)),
        "pooled_projections": Input((BATCH, config.pooled_projection_dim)),
    }
    axes = {"tokens": Axis(1, 512, 1024), **_sides(2, 128, 512)}
    scale = "guidance" if config.guidance_embeds else None
    sample = Input((BATCH, config.in_channels // 4, "height", "width"))
    module = _Flux(model, axes["height"].high // 2)
    dtype = next(p.dtype for p in model.parameters())
    return GraphModel(module, sample, conditions, axes, scale=scale, times=(0.0, 1.0), dtype=dtype)


class _Wan(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, *, encoder_hidden_states: Tensor) -> Tensor:
        result: Tensor = self.model(x, t, encoder_hidden_states, return_dict=False)[0]
        return result


def wan(model: nn.Module) -> GraphModel:
    """``WanTransformer3DModel``, text to video; frames are the latent's, timesteps 0 to 1000."""
    config: Any = model.config
    if config.image_dim is not None:
        raise _refuse(model, "image_dim", config.image_dim)
    frames, down, across = config.patch_size
    if down != across:
        raise _refuse(model, "patch_size", config.patch_size)
    axes = {
        "tokens": Axis(1, 512, 1024),
        "frames": Axis(frames, 21 // frames * frames, 64 // frames * frames, frames),
        **_sides(down, 104, 256),
    }
    sample = Input((BATCH, config.in_channels, "frames", "height", "width"))
    conditions = {"encoder_hidden_states": Input((BATCH, "tokens", config.text_dim))}
    dtype = model.patch_embedding.weight.dtype  # type: ignore[union-attr]
    return GraphModel(_Wan(model), sample, conditions, axes, dtype=dtype)  # type: ignore[arg-type]


ADAPTERS: dict[str, Callable[[nn.Module], GraphModel]] = {
    "UNet2DConditionModel": unet,
    "SD3Transformer2DModel": sd3,
    "FluxTransformer2DModel": flux,
    "WanTransformer3DModel": wan,
}
"""Adapters by the class they know."""
