"""Steadiness of a video: flicker, jitter and aliasing of its frames.

Videos are ``[B, C, F, H, W]`` (``frame_dim=2``) or ``[B, F, C, H, W]`` (``frame_dim=1``); any tensor with a frame
dimension will do.
"""

from __future__ import annotations

import torch
from fastcfg_kernels.backends.torch.tiles import accumulator
from torch import Tensor

__all__ = ["aliasing", "flicker", "jitter"]


def _frames_last(video: Tensor, frame_dim: int) -> Tensor:
    """``[B, F, N]`` in the accumulator's dtype."""
    if not isinstance(video, Tensor) or not video.is_floating_point():
        raise TypeError(f"video: expected a floating tensor, got {getattr(video, 'dtype', type(video).__name__)}")
    rank = video.dim()
    if not -rank <= frame_dim < rank or frame_dim % rank == 0:
        raise ValueError(f"frame_dim: expected a dimension 1 ... {rank - 1}, got {frame_dim}")
    moved = video.movedim(frame_dim, 1)
    return moved.reshape(*moved.shape[:2], -1).to(accumulator(video.dtype))


def flicker(video: Tensor, frame_dim: int = 2) -> Tensor:
    """Root mean square of the change from a frame to the next, ``[B]``; zero for a still video or one frame."""
    frames = _frames_last(video, frame_dim)
    return _rms(frames.diff(dim=1))


def jitter(video: Tensor, frame_dim: int = 2) -> Tensor:
    """Root mean square of the second difference over frames, ``[B]``: zero where every element moves evenly."""
    frames = _frames_last(video, frame_dim)
    return _rms(frames.diff(n=2, dim=1)) if frames.shape[1] > 2 else frames.new_zeros(frames.shape[0])


def aliasing(video: Tensor, frame_dim: int = 2) -> Tensor:
    """Share of the energy of the changes that is above half the Nyquist frequency of the frames, ``[B]`` in 0 … 1.

    The mean over the frames is left out; a still video has 0.
    """
    frames = _frames_last(video, frame_dim)
    count = frames.shape[1]
    if count < 2:
        return frames.new_zeros(frames.shape[0])
    energy = torch.fft.rfft(frames - frames[:, :1], dim=1).abs().square().sum(-1)[:, 1:]  # [B, count // 2]
    frequencies = torch.fft.rfftfreq(count, device=frames.device)[1:]
    # All but the mean and, for an even count, the Nyquist frequency stand for two frequencies.
    twice = torch.full_like(frequencies, 2.0)
    if count % 2 == 0:
        twice[-1] = 1.0
    energy = energy * twice.to(energy.dtype)
    total = energy.sum(-1)
    high = (energy * (frequencies > 0.25)).sum(-1)
    return torch.where(total > 0, high / total, torch.zeros_like(total))


def _rms(x: Tensor) -> Tensor:
    return x.square().mean(dim=(1, 2)).sqrt() if x.shape[1] else x.new_zeros(x.shape[0])
