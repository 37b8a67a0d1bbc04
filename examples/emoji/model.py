"""The denoiser: a v-prediction U-Net for 40×40 RGB that reads its prompt by cross-attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .words import MAX_WORDS, VOCABULARY


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a ``TextUNet``: channels at 20×20, 10×10 and 5×5, of the text, and the blocks a level."""

    widths: tuple[int, int, int] = (40, 80, 160)
    text: int = 96
    embedding: int = 160
    heads: int = 4
    groups: int = 8


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
    """Attention of the pixels to each other and, in the same softmax, to the prompt's words."""

    def __init__(self, channels: int, text: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.words = nn.Linear(text, 2 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        tokens = self.norm(h).flatten(2).transpose(1, 2)  # [B, HW, C]
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        word_k, word_v = self.words(words).chunk(2, dim=-1)
        k, v = torch.cat([k, word_k], 1), torch.cat([v, word_v], 1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        seen = F.pad(mask, (tokens.shape[1], 0), value=True)[:, None, None]  # [B, 1, 1, HW + words]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
        out: Tensor = self.out(mixed).transpose(1, 2).unflatten(-1, h.shape[-2:])
        return h + out


class TextEncoder(nn.Module):
    """A transformer layer over learned word embeddings."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.word = nn.Embedding(len(VOCABULARY), width)
        self.place = nn.Parameter(torch.randn(1 + MAX_WORDS, width) * 0.1)
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, prompt: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.norm(self.layer(self.word(prompt) + self.place, src_key_padding_mask=~mask))
        return out


class TextUNet(nn.Module):
    """Predict ``v = alpha·noise − sigma·x0`` of pictures under a prompt.

    The picture enters and leaves by pixel (un)shuffle, which keeps the convolutions off the full resolution.
    """

    def __init__(self, config: ModelConfig = ModelConfig()) -> None:
        super().__init__()
        self.config = config
        a, b, c = config.widths
        emb, groups = config.embedding, config.groups
        self.text = TextEncoder(config.text, config.heads)
        self.pooled = nn.Linear(config.text, emb)
        self.time = nn.Sequential(nn.Linear(emb, emb), nn.SiLU(), nn.Linear(emb, emb))

        def block(in_channels: int, channels: int) -> ResBlock:
            return ResBlock(in_channels, channels, emb, groups)

        def attention(channels: int) -> Attention:
            return Attention(channels, config.text, config.heads, groups)

        self.stem = nn.Conv2d(12, a, 3, padding=1)
        self.down_a = block(a, a)
        self.shrink_a = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.down_b = nn.ModuleList([block(b, b), attention(b), block(b, b)])
        self.shrink_b = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.middle = nn.ModuleList([block(c, c), attention(c), block(c, c), attention(c), block(c, c)])
        self.grow_b = nn.Conv2d(c, 4 * b, 1)
        self.up_b = nn.ModuleList([block(2 * b, b), attention(b), block(b, b)])
        self.grow_a = nn.Conv2d(b, 4 * a, 1)
        self.up_a = nn.ModuleList([block(2 * a, a), block(a, a)])
        self.norm = nn.GroupNorm(groups, a)
        self.head = nn.Conv2d(a, 12, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor | float, *, prompt: Tensor) -> Tensor:
        """Return v, ``[B, 3, 40, 40]`` in ``x``'s dtype.

        Args:
            x: noisy pictures, ``[B, 3, 40, 40]``.
            t: time step 0-999, a number, 0-dim or ``[B]``.
            prompt: word numbers, int64 ``[B, 1 + MAX_WORDS]`` (see ``words.encode``).
        """
        t = torch.as_tensor(t, device=x.device, dtype=torch.float32).expand(x.shape[0])
        mask = prompt != 0
        words = self.text(prompt, mask)
        weight = mask[..., None] / mask.sum(1)[:, None, None]
        embedding = self.time(_time_features(t, self.config.embedding).to(x.dtype)) + self.pooled(
            (words * weight).sum(1)
        )
        embedding = F.silu(embedding)

        def run(blocks: nn.ModuleList, h: Tensor) -> Tensor:
            for block in blocks:
                h = block(h, words, mask) if isinstance(block, Attention) else block(h, embedding)
            return h

        h = self.stem(F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last))
        skip_a = self.down_a(h, embedding)
        skip_b = run(self.down_b, self.shrink_a(skip_a))
        h = run(self.middle, self.shrink_b(skip_b))
        h = run(self.up_b, torch.cat([F.pixel_shuffle(self.grow_b(h), 2), skip_b], 1))
        h = run(self.up_a, torch.cat([F.pixel_shuffle(self.grow_a(h), 2), skip_a], 1))
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), 2).contiguous()


def _time_features(t: Tensor, size: int) -> Tensor:
    half = size // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000.0) / half))
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
