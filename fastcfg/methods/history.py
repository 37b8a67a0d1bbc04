"""Histories for video diffusion with a noise level per frame (Diffusion Forcing, DFoT).

A noise level is a number in 0 … 1: 0 is a clean frame, 1 is noise alone, so that a frame at level 1 tells the model
nothing and a history at levels 1 is no history. The condition of a pass is therefore a vector of levels ``[F]`` and the
frames noised to them, and unconditional means all of the history at 1.

    task = prediction_task(num_frames=8, history=3)
    conditions = history_conditions(task, history_views(rule, level=0.5), clean=video, noise=noise)
    denoiser = GuidedDenoiser(with_history(model), rule)
    denoiser(x, t, conditions=conditions)

Sources: Chen et al., 2407.01392 (Diffusion Forcing); Song et al., 2502.06764 (DFoT).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from fastcfg_kernels.backends.torch.tiles import accumulator
from torch import Tensor

from ..rules import HistoryGuidance

__all__ = [
    "HistoryTask",
    "HistoryView",
    "history_conditions",
    "history_views",
    "interpolation_task",
    "noise_frames",
    "prediction_task",
    "signal_and_noise",
    "with_history",
]

NoiseSchedule = Literal["flow", "cosine"] | Callable[[Tensor], tuple[Tensor, Tensor]]
"""Signal and noise by level k: 1 - k and k (``"flow"``), cos and sin of k pi/2 (``"cosine"``), or a function."""


@dataclass(frozen=True)
class HistoryTask:
    """The known frames of a video.

    Attributes:
        num_frames: F.
        history: numbers of the known frames, in order.
    """

    num_frames: int
    history: tuple[int, ...]

    def __post_init__(self) -> None:
        if isinstance(self.num_frames, bool) or not isinstance(self.num_frames, int) or self.num_frames < 1:
            raise ValueError(f"num_frames: expected a positive integer, got {self.num_frames!r}")
        frames = tuple(self.history)
        if any(isinstance(f, bool) or not isinstance(f, int) or not 0 <= f < self.num_frames for f in frames):
            raise ValueError(f"history: expected frame numbers in 0 ... {self.num_frames - 1}, got {frames}")
        object.__setattr__(self, "history", tuple(sorted(set(frames))))

    @property
    def generated(self) -> tuple[int, ...]:
        """Numbers of the frames to make."""
        return tuple(f for f in range(self.num_frames) if f not in self.history)

    def mask(self, device: torch.device | str | None = None) -> Tensor:
        """True for the known frames, ``[F]``."""
        mask = torch.zeros(self.num_frames, dtype=torch.bool)
        mask[list(self.history)] = True
        return mask.to(device)

    def levels(
        self,
        t: Tensor | float,
        view: HistoryView | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The vector of noise levels in float32: ``t`` for the frames to make, the view's for the known ones.

        Args:
            t: level of the frames to make: a number, ``[]``, ``[B]``, or ``[B, F]`` for levels of their own (the
                known frames' entries are not read).
            view: what is seen of the history; default all of it, clean.

        Returns:
            ``[F]``, or ``[B, F]`` where ``t`` has a batch.
        """
        seen = torch.tensor((view or HistoryView()).levels_of(self), dtype=torch.float32)
        own = torch.as_tensor(t, dtype=torch.float32, device=device)
        if own.dim() == 1:
            own = own.unsqueeze(1)
        if own.dim() > 2 or (own.dim() == 2 and own.shape[1] not in (1, self.num_frames)):
            raise ValueError(f"t: expected [], [B] or [B, {self.num_frames}], got {list(own.shape)}")
        return torch.where(self.mask(own.device), seen.to(own.device), own)


@dataclass(frozen=True)
class HistoryView:
    """The history as one pass sees it.

    Attributes:
        frames: numbers of the known frames that are seen; None is all of them. The others are at level 1.
        level: noise level of the seen frames: a number (t_H), or one for each of ``frames`` in their order.
    """

    frames: tuple[int, ...] | None = None
    level: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        if self.frames is not None:
            object.__setattr__(self, "frames", tuple(self.frames))
        levels = tuple(self.level) if isinstance(self.level, Sequence) else (self.level,)
        for level in levels:
            if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level <= 1:
                raise ValueError(f"level: expected noise levels in 0 ... 1, got {self.level!r}")
        object.__setattr__(self, "level", levels if isinstance(self.level, Sequence) else float(self.level))

    def levels_of(self, task: HistoryTask) -> tuple[float, ...]:
        """A level for each frame of a task; 1 for the frames that are not seen (and for those to make).

        Raises:
            ValueError: naming ``frames`` or ``level`` if they don't fit the task.
        """
        frames = task.history if self.frames is None else self.frames
        if unknown := [f for f in frames if f not in task.history]:
            raise ValueError(f"frames: {unknown} are not known; the history is {list(task.history)}")
        values = self.level if isinstance(self.level, tuple) else (self.level,) * len(frames)
        if len(values) != len(frames):
            raise ValueError(f"level: expected one number, or {len(frames)} for as many frames, got {len(values)}")
        levels = [1.0] * task.num_frames
        for frame, value in zip(frames, values, strict=True):
            levels[frame] = value
        return tuple(levels)


NO_HISTORY = HistoryView(frames=())


def prediction_task(num_frames: int, history: int) -> HistoryTask:
    """The first ``history`` frames are known, and the rest is to be made.

    Raises:
        ValueError: naming ``history`` unless ``0 <= history < num_frames``.
    """
    if isinstance(history, bool) or not isinstance(history, int) or not 0 <= history < num_frames:
        raise ValueError(f"history: expected a number of frames in 0 ... {num_frames - 1}, got {history!r}")
    return HistoryTask(num_frames, tuple(range(history)))


def interpolation_task(num_frames: int, keyframes: Sequence[int] = (0, -1)) -> HistoryTask:
    """The keyframes are known (negative numbers count from the end), and what is between them is to be made.

    Raises:
        ValueError: naming ``keyframes``.
    """
    if not keyframes or any(not isinstance(k, int) or not -num_frames <= k < num_frames for k in keyframes):
        raise ValueError(f"keyframes: expected frame numbers in {-num_frames} ... {num_frames - 1}, got {keyframes}")
    return HistoryTask(num_frames, tuple(k % num_frames for k in keyframes))


def signal_and_noise(levels: Tensor, schedule: NoiseSchedule = "flow") -> tuple[Tensor, Tensor]:
    """``(alpha, sigma)`` of noise levels, so that a frame at a level is ``alpha * clean + sigma * noise``.

    Level 0 gives exactly (1, 0) and level 1 exactly (0, 1), for the named schedules.
    """
    if callable(schedule):
        return schedule(levels)
    if schedule == "flow":
        return 1 - levels, levels
    if schedule == "cosine":
        # The sine from the same half of the circle, since cos(pi/2) is 6e-17 and not 0.
        angle = levels * (math.pi / 2)
        return torch.sin((1 - levels) * (math.pi / 2)), torch.sin(angle)
    raise ValueError(f"schedule: expected 'flow', 'cosine' or a function of the levels, got {schedule!r}")


def noise_frames(
    clean: Tensor, noise: Tensor, levels: Tensor, *, schedule: NoiseSchedule = "flow", frame_dim: int = 2
) -> Tensor:
    """Frames noised to a level each: ``alpha_f * clean_f + sigma_f * noise_f``.

    Args:
        clean, noise: ``[B, C, F, H, W]`` (``frame_dim=2``) or ``[B, F, C, H, W]`` (1), of one shape and device.
        levels: ``[F]`` or ``[B, F]``, in 0 … 1.
        schedule: see :func:`signal_and_noise`.

    Returns:
        The shape and dtype of ``clean``, computed in float32 (float64 for float64) and rounded once. A frame at level
        0 is the clean frame and one at level 1 the noise, bit for bit, whatever the other holds.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(clean, Tensor) or not clean.is_floating_point():
        raise TypeError(f"clean: expected a floating tensor, got {getattr(clean, 'dtype', type(clean).__name__)}")
    if noise.shape != clean.shape or noise.device != clean.device:
        raise ValueError(f"noise: expected the shape {list(clean.shape)} on {clean.device}, got {list(noise.shape)}")
    rank = clean.dim()
    if not -rank <= frame_dim < rank or frame_dim % rank == 0:
        raise ValueError(f"frame_dim: expected a dimension 1 ... {rank - 1}, got {frame_dim}")
    frame_dim %= rank
    batch, frames = clean.shape[0], clean.shape[frame_dim]
    if tuple(levels.shape) not in ((frames,), (1, frames), (batch, frames)):
        raise ValueError(f"levels: expected the shape [{frames}] or [{batch}, {frames}], got {list(levels.shape)}")
    acc = accumulator(clean.dtype)
    alpha, sigma = signal_and_noise(levels.to(clean.device, acc), schedule)

    def over_elements(value: Tensor) -> Tensor:
        return value.reshape(-1, *[1] * (frame_dim - 1), frames, *[1] * (rank - frame_dim - 1))

    alpha, sigma = over_elements(alpha), over_elements(sigma)
    mixed = alpha * clean.to(acc) + sigma * noise.to(acc)
    # A select, so that what a frame is not made of does not matter: a masked frame may hold anything.
    mixed = torch.where(sigma == 0, clean.to(acc), torch.where(alpha == 0, noise.to(acc), mixed))
    return mixed.to(clean.dtype)


def history_views(
    rule: HistoryGuidance,
    *,
    parts: Sequence[HistoryView] | None = None,
    level: float | tuple[float, ...] = 0.5,
    bands: Sequence[tuple[HistoryView, HistoryView]] | None = None,
) -> dict[str, HistoryView]:
    """Return what each condition of a rule sees of the history.

    Args:
        parts: for ``kind="temporal"``, one view for each scale (subsets, levels).
        level: for ``kind="fractional"``, t_H of the partial history: a number, or one for each known frame.
        bands: for ``kind="between"``, a pair (start, end) for each scale.

    Raises:
        ValueError: naming ``parts`` or ``bands`` if there are not as many as scales.
    """
    views = {"uncond": NO_HISTORY}
    names = rule.conditions[1:]
    if rule.kind == "vanilla":
        return views | {"cond": HistoryView()}
    if rule.kind == "fractional":
        return views | {"cond": HistoryView(), "partial": HistoryView(level=level)}
    if rule.kind == "temporal":
        if parts is None or len(parts) != len(names):
            raise ValueError(f"parts: expected {len(names)} views, got {0 if parts is None else len(parts)}")
        return views | dict(zip(names, parts, strict=True))
    if bands is None or 2 * len(bands) != len(names):
        raise ValueError(f"bands: expected {len(names) // 2} pairs of views, got {0 if bands is None else len(bands)}")
    return views | dict(zip(names, (view for pair in bands for view in pair), strict=True))


def history_conditions(
    task: HistoryTask,
    views: Mapping[str, HistoryView],
    *,
    clean: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule = "flow",
    frame_dim: int = 2,
) -> dict[str, dict[str, Tensor]]:
    """The conditions of a :class:`fastcfg.GuidedDenoiser` around :func:`with_history`.

    Views that come to the same levels share one condition, which the planner runs once: a partial history at level 0 is
    the clean one, at level 1 it is none.

    Args:
        task: which frames are known.
        views: a view for each condition, as from :func:`history_views`.
        clean: a video that holds the known frames; the others are not read.
        noise: noise of the same shape. The same noise for all passes keeps their difference to the condition.
        schedule, frame_dim: as for :func:`noise_frames`.

    Returns:
        For each name ``{"history": the noised frames, "levels": [B, F], "known": [B, F]}``; levels are
        float32 (float64 for a float64 video).

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(clean, Tensor) or not -clean.dim() <= frame_dim < clean.dim():
        raise TypeError(f"clean: expected a video with a dimension {frame_dim}, got {type(clean).__name__}")
    if clean.shape[frame_dim] != task.num_frames:
        raise ValueError(f"clean: expected {task.num_frames} frames in dimension {frame_dim}, got {list(clean.shape)}")
    known = task.mask(clean.device).expand(clean.shape[0], -1)
    made: dict[tuple[float, ...], dict[str, Tensor]] = {}
    conditions = {}
    for name, view in views.items():
        levels = view.levels_of(task)
        if levels not in made:
            vector = torch.tensor(levels, dtype=accumulator(clean.dtype), device=clean.device)
            made[levels] = {
                "history": noise_frames(clean, noise, vector, schedule=schedule, frame_dim=frame_dim),
                "levels": vector.expand(clean.shape[0], -1),
                "known": known,
            }
        conditions[name] = made[levels]
    return conditions


def with_history(model: Callable[..., Any], *, frame_dim: int = 2) -> Callable[..., Any]:
    """A model with a noise level per frame as ``model(x, t, history, levels, known, **kwargs)``.

    The known frames of ``x`` are replaced by the noised history, and ``model(x, levels, **kwargs)`` is called with the
    vector of levels ``[B, F]``: the history's for the known frames, ``t`` for the others.

    Args:
        model: ``model(x, levels, **kwargs)``, x a video with the frames in ``frame_dim``.
    """

    def guided(x: Tensor, t: Tensor | float, *, history: Tensor, levels: Tensor, known: Tensor, **kwargs: Any) -> Any:
        over_elements = [1] * x.dim()
        over_elements[0], over_elements[frame_dim] = known.shape
        own = torch.as_tensor(t, dtype=levels.dtype, device=levels.device)
        own = own.unsqueeze(1) if own.dim() == 1 else own
        mixed = torch.where(known.view(over_elements), history.to(x.dtype), x)
        return model(mixed, torch.where(known, levels, own), **kwargs)

    return guided
