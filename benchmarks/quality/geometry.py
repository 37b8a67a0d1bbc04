"""The geometry of guidance: lengths and angles of the predictions along CFG's own trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcfg import CFG, guide
from fastcfg.metrics.geometry import geometry

from .sampling import Model, Start, ddim

__all__ = ["Trace", "trace"]


@dataclass(frozen=True)
class Trace:
    """One step at one scale: means over the samples.

    Attributes:
        noise_level: sigma of ``x = alpha x0 + sigma eps``, alpha^2 + sigma^2 = 1.
        delta_ratio: ``|d|/|u|``, d = c - u.
        cosine: of d with u.
        parallel_share: share of ``|d|^2`` that lies along c, which is what APG leaves out.
        norm_ratio: ``|guided|/|c|``.
        spread_ratio: the guided prediction's standard deviation over that of c.
        deviation: of each of these over the samples, by name.
    """

    scale: float
    step: int
    noise_level: float
    delta_ratio: float
    cosine: float
    parallel_share: float
    norm_ratio: float
    spread_ratio: float
    deviation: Mapping[str, float]


@torch.inference_mode()
def trace(network: Model, scale: float, start: Start, steps: int) -> list[Trace]:
    """Return the geometry of the predictions as the network makes them, in v."""
    rule, x = CFG(scale), start.noise
    labels = start.conditions("both", rule.conditions)
    found = []
    for index, step in enumerate(ddim(steps)):
        uncond, cond = (network(x, step.timestep, **labels[name]) for name in ("uncond", "cond"))
        guided = guide(rule, uncond=uncond, cond=cond)
        lengths = geometry(rule, uncond=uncond, cond=cond)
        u, c, y = (one.flatten(1) for one in (uncond, cond, guided))
        values: dict[str, Tensor] = {
            "delta_ratio": lengths.norm_delta / lengths.norm_uncond,
            "cosine": lengths.cos_uncond_delta,
            "parallel_share": F.cosine_similarity(c - u, c).square(),
            "norm_ratio": lengths.gain,
            "spread_ratio": y.std(dim=1) / c.std(dim=1),
        }
        mean = {name: value.mean().item() for name, value in values.items()}
        deviation = {name: value.std().item() for name, value in values.items()}
        assert step.level is not None
        found.append(Trace(scale=scale, step=index, noise_level=float(step.level.sigma), deviation=deviation, **mean))
        x = step.prediction * guided + step.x * x
    return found
