"""Stock and fused guidance in the same sampling loop: time per step and difference of the images."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from torch import Tensor

import fastcfg

from .diffusion import noise_scheduler
from .model import UNet
from .sample import Labels

Guidance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Timing:
    """One row of the table of stock and fused guidance.

    Attributes:
        guidance: the rule in words.
        stock_us, fused_us: median time of the guidance in one step, in microseconds.
        largest_difference: between the final images of both loops, where images span [-1, 1].
        shape: of one prediction.
        dtype: of the predictions.
    """

    guidance: str
    stock_us: float
    fused_us: float
    largest_difference: float
    shape: tuple[int, ...]
    dtype: str


def stock_guidance(scale: float, rescale: float = 0.0) -> Guidance:
    """Guidance as the diffusers pipelines write it: a few eager operations."""

    def guidance(uncond: Tensor, cond: Tensor) -> Tensor:
        guided = uncond + scale * (cond - uncond)
        if rescale > 0:
            guided = rescale_noise_cfg(guided, cond, rescale)  # type: ignore[no-untyped-call]
        return guided

    return guidance


def fused_guidance(scale: float, rescale: float = 0.0) -> Guidance:
    """The same guidance by fastcfg."""
    rule = fastcfg.CFG(scale=scale, rescale=rescale)

    def guidance(uncond: Tensor, cond: Tensor) -> Tensor:
        return fastcfg.guide(rule, uncond=uncond, cond=cond)

    return guidance


@torch.no_grad()
def compare(
    model: UNet,
    uncond: Labels,
    cond: Labels,
    noise: Tensor,
    *,
    scale: float,
    rescale: float = 0.0,
    steps: int = 20,
    repeats: int = 5,
    on_step: Callable[[], None] | None = None,
) -> Timing:
    """Runs two sampling loops side by side, one with each guidance.

    In each step both guidances are timed ``repeats`` times, in turns and with the first turn alternating, on the
    predictions of their own loop. The first call of each, which may compile, is made before and not counted.

    Args:
        uncond, cond: labels of the two passes.
        noise: start of both loops, ``[B, 3, 28, 28]``.
    """
    guidances = (stock_guidance(scale, rescale), fused_guidance(scale, rescale))
    both = {name: torch.cat([uncond[name], cond[name]]) for name in uncond}
    scheduler = noise_scheduler()
    scheduler.set_timesteps(steps)
    for guidance in guidances:
        guidance(noise, noise.roll(1, 0))
    latents = [noise, noise]
    seconds: tuple[list[float], list[float]] = ([], [])
    for step, t in enumerate(scheduler.timesteps.tolist()):
        predictions = [model(torch.cat([x, x]), t, **both).chunk(2) for x in latents]
        guided = list(latents)
        for repeat in range(repeats):
            for side in (0, 1) if (step + repeat) % 2 == 0 else (1, 0):
                _wait(noise.device)
                start = time.perf_counter()
                guided[side] = guidances[side](*predictions[side])
                _wait(noise.device)
                seconds[side].append(time.perf_counter() - start)
        latents = [scheduler.step(v, t, x).prev_sample for v, x in zip(guided, latents, strict=True)]  # type: ignore[union-attr]
        if on_step is not None:
            on_step()
    return Timing(
        guidance=f"CFG {scale:g}" + (f" + rescale {rescale:g}" if rescale else ""),
        stock_us=statistics.median(seconds[0]) * 1e6,
        fused_us=statistics.median(seconds[1]) * 1e6,
        largest_difference=(latents[0] - latents[1]).abs().max().item(),
        shape=tuple(noise.shape),
        dtype=str(noise.dtype).removeprefix("torch."),
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
