"""The demo's denoiser: a small class-conditional v-prediction U-Net for 28×28 RGB."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distill.embedding import Convention, FluxScaleEmbedding, LCMScaleEmbedding
from ..distill.families import Family, register_family
from .data import NULL_COLOUR, NULL_DIGIT


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a ``UNet``, and the form in which a distilled one takes its guidance scale (``""``: not at all)."""

    width: int = 40
    embedding: int = 128
    groups: int = 8
    heads: int = 4
    scale_form: Literal["", "lcm", "flux"] = ""
    scale_dim: int = 256


class ResBlock(nn.Module):
    """Two convolutions, the second normalised with a scale and shift taken from the embedding."""

    def __init__(self, in_channels: int, channels: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, in_channels)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.norm_out = nn.GroupNorm(groups, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = self.conv_in(F.silu(self.norm_in(h)))
        out = self.conv_out(F.silu(self.norm_out(out) * (1 + scale) + shift))
        skipped: Tensor = self.skip(h)
        return out + skipped


class Attention(nn.Module):
    """Self-attention over the pixels."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.norm(h).flatten(2).transpose(1, 2)  # [B, HW, C]
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.out(mixed).transpose(1, 2).unflatten(-1, h.shape[-2:])
        return h + out


class UNet(nn.Module):
    """v-prediction U-Net with two labels, working at 14×14 and 7×7.

    The image enters and leaves by pixel (un)shuffle, which keeps the convolutions off the full resolution: four times
    fewer operations on a CPU.
    """

    def __init__(self, config: UNetConfig = UNetConfig()) -> None:
        super().__init__()
        self.config = config
        width, emb, groups = config.width, config.embedding, config.groups
        self.digit_embedding = nn.Embedding(NULL_DIGIT + 1, emb)
        self.colour_embedding = nn.Embedding(NULL_COLOUR + 1, emb)
        self.time_mlp = nn.Sequential(nn.Linear(emb, emb), nn.SiLU(), nn.Linear(emb, emb))

        def block(in_channels: int, channels: int) -> ResBlock:
            return ResBlock(in_channels, channels, emb, groups)

        self.stem = nn.Conv2d(12, width, 3, padding=1)
        self.down = block(width, width)
        self.shrink = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle_in = block(2 * width, 2 * width)
        self.attention = Attention(2 * width, config.heads, groups)
        self.middle_out = block(2 * width, 2 * width)
        self.grow = nn.Conv2d(2 * width, 4 * width, 1)
        self.up_in = block(2 * width, width)
        self.up_out = block(width, width)
        self.norm = nn.GroupNorm(groups, width)
        self.head = nn.Conv2d(width, 12, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.scale_embedding: nn.Module | None = None
        if config.scale_form:
            self.add_scale_input(Convention(config.scale_form, config.scale_dim))

    def add_scale_input(self, convention: Convention) -> None:
        """Makes the network take a guidance scale; its output does not change until the new weights are trained."""
        embed = LCMScaleEmbedding if convention.form == "lcm" else FluxScaleEmbedding
        self.scale_embedding = embed(convention.dim, self.config.embedding).to(self.stem.weight)
        self.config = replace(self.config, scale_form=convention.form, scale_dim=convention.dim)

    def remove_scale_input(self) -> None:
        """Undoes ``add_scale_input``."""
        self.scale_embedding = None
        self.config = replace(self.config, scale_form="", scale_dim=UNetConfig.scale_dim)

    def forward(
        self,
        x: Tensor,
        t: Tensor | int,
        *,
        digit: Tensor,
        colour: Tensor,
        timestep_cond: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Predicts ``v = alpha·noise - sigma·x0``.

        Args:
            x: noisy images, ``[B, 3, 28, 28]``.
            t: time steps 0-999, a number or ``[B]`` or 0-dim.
            digit: 0-9, or ``NULL_DIGIT`` for none, int64 ``[B]``.
            colour: an index into ``PALETTE``, or ``NULL_COLOUR`` for none, int64 ``[B]``.
            timestep_cond, guidance: the guidance scale of a distilled network, in the form it was distilled in; see
                ``fastcfg.distill.Convention``.

        Returns:
            v, ``[B, 3, 28, 28]`` in ``x``'s dtype.
        """
        t = torch.as_tensor(t, device=x.device).expand(x.shape[0])
        features = time_features(t, self.config.embedding).to(x.dtype)
        for form, value in (("lcm", timestep_cond), ("flux", guidance)):
            if value is not None and form != self.config.scale_form:
                raise ValueError(f"this network takes no guidance scale in the {form} form: '{self.config.scale_form}'")
        if self.scale_embedding is not None and timestep_cond is not None:
            features = features + self.scale_embedding(timestep_cond)
        embedding = self.time_mlp(features)
        if self.scale_embedding is not None and guidance is not None:
            embedding = embedding + self.scale_embedding(guidance)
        embedding = F.silu(embedding + self.digit_embedding(digit) + self.colour_embedding(colour))
        h = self.stem(F.pixel_unshuffle(x, 2))
        skip = self.down(h, embedding)
        h = self.middle_in(self.shrink(skip), embedding)
        h = self.middle_out(self.attention(h), embedding)
        h = self.up_in(torch.cat([F.pixel_shuffle(self.grow(h), 2), skip], dim=1), embedding)
        h = self.up_out(h, embedding)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), 2)


def time_features(t: Tensor, size: int) -> Tensor:
    """Sines and cosines of ``t`` at geometric frequencies from 1 to 1e-4, float32 ``[B, size]``."""
    half = size // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000.0) / half))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class DemoUNet(Family):
    """The demo's U-Net, and any network that has its methods: both forms, added by itself."""

    name = "demo-unet"

    def handles(self, network: nn.Module) -> bool:
        return hasattr(network, "add_scale_input") and hasattr(network, "remove_scale_input")

    def add_scale_input(self, network: nn.Module, convention: Convention) -> None:
        if getattr(network, "scale_embedding", None) is not None:
            raise ValueError("network: takes a guidance scale already")
        network.add_scale_input(convention)  # type: ignore[operator]

    def remove_scale_input(self, network: nn.Module) -> None:
        network.remove_scale_input()  # type: ignore[operator]

    def scale_module(self, network: nn.Module) -> str:
        return "scale_embedding"

    def config(self, network: nn.Module) -> dict[str, Any]:
        return asdict(network.config)  # type: ignore[call-overload, no-any-return]

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        return UNet(UNetConfig(**config))


register_family(DemoUNet())
