"""Our ComfyUI nodes beside ComfyUI's own, for the tests that drive both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcfg.adapters import comfyui as pack

from .clients import comfyui as client

__all__ = ["PAIRS", "SCALE", "SHAPES", "SIGMAS", "UNIT", "Pair", "bound", "call", "draw", "ours"]

UNIT = 2.0**-24
SCALE = 6.0
SHAPES = {"image": (4, 6, 8), "video": (4, 3, 6, 8)}


def ours(node: str, **inputs: Any) -> Any:
    """What a node of the pack returns."""
    return pack.NODE_CLASS_MAPPINGS[node]().execute(**inputs)[0]


def draw(batch: int, shape: tuple[int, ...], sigma: float) -> dict[str, Tensor]:
    """A call's tensors in float64, float32 values: predictions share most of what they are, as a model's do."""
    generator = torch.Generator().manual_seed(7 * batch + len(shape))
    normal = [torch.randn(batch, *shape, generator=generator).double() for _ in range(4)]
    base = normal[0]
    x = base + sigma * normal[1]
    tensors = {"x": x, "cond": base + 0.3 * normal[2], "uncond": base + 0.3 * normal[3] - 0.1}
    return {name: tensor.float().double() for name, tensor in tensors.items()}


def call(model: Any, t: dict[str, Tensor], dtype: torch.dtype, sigma: float, scale: float = SCALE) -> Tensor:
    """ComfyUI's ``sampling_function`` on given predictions, with the model's hooks."""
    given = {name: tensor.to(dtype) for name, tensor in t.items()}
    options = dict(model.model_options)
    options["sampler_calc_cond_batch_function"] = lambda args: [given["cond"], given["uncond"]]
    level = torch.full((given["x"].shape[0],), sigma, dtype=dtype)
    run = client.load().samplers.sampling_function
    return run(model.model, given["x"], level, [{}], [{}], scale, model_options=options)  # type: ignore[no-any-return]


def bound(t: dict[str, Tensor], scale: float) -> Tensor:
    """Of our float32 result's error, for each element.

    Conversions to a space and back, K = 3 terms, ``x - y`` and ComfyUI's ``x - r`` are some 24 roundings of at most
    ``|x| + (2 scale + 1) |p|``; the weights' own error is that of sums over N elements in 16 chains (see
    tolerances.py), and acts on what they weigh.
    """
    count = t["x"][0].numel()
    size = t["x"].abs() + (2 * scale + 1) * torch.maximum(t["cond"].abs(), t["uncond"].abs())
    largest = size.flatten(1).amax(1).view(-1, *[1] * (size.dim() - 1))
    return UNIT * (24 * size + (4 * (count / 16) ** 0.5 + 8) * largest)


@dataclass(frozen=True)
class Pair:
    """A node of ours and ComfyUI's.

    Attributes:
        video, batch: whether ComfyUI's is right for video, and for a batch; else it is given images, of one sample.
        frames: whether it is right for the frames of a video one by one.
    """

    name: str
    ours: Callable[[Any], Any]
    theirs: Callable[[Any, Any], Any]
    video: bool = True
    batch: bool = True
    frames: bool = False

    def __str__(self) -> str:
        return self.name


PAIRS = [
    Pair("CFG", lambda m: ours("FastcfgCFG", model=m), lambda k, m: m.clone()),
    Pair(
        "RescaleCFG",
        lambda m: ours("FastcfgRescale", model=m, multiplier=0.7, norm="std", space="v"),
        lambda k, m: k.model_advanced.RescaleCFG().patch(m, 0.7)[0],
        video=False,
    ),
    Pair(
        "APG",
        lambda m: ours("FastcfgAPG", model=m, eta=0.3, norm_threshold=3.0, momentum=0.0, base="cond", space="x0"),
        lambda k, m: k.apg.APG.execute(m, 0.3, 3.0, 0.0)[0],
        video=False,
    ),
    Pair(
        "CFGZeroStar",
        lambda m: ours("FastcfgCFGZeroStar", model=m, variant="comfyui", zero_init_steps=0, space="noise"),
        lambda k, m: k.cfg.CFGZeroStar.execute(m)[0],
    ),
    Pair(
        "TCFG", lambda m: ours("FastcfgTCFG", model=m, space="noise"), lambda k, m: k.tcfg.TCFG.execute(m)[0]
    ),
    Pair(
        "CFGNorm",
        lambda m: ours("FastcfgNormCap", model=m, cap=1.0, mode="cap", over="channel", space="x0"),
        lambda k, m: k.cfg.CFGNorm.execute(m, 1.0)[0],
    ),
    Pair(
        "RenormCFG",
        lambda m: ours("FastcfgNormCap", model=m, cap=0.9, mode="cap", over="sample", space="x0"),
        lambda k, m: k.lumina2.RenormCFG.execute(m, 100.0, 0.9)[0],
        batch=False,
    ),
    Pair(
        "EpsilonScaling",
        lambda m: ours("FastcfgEpsilonScaling", model=m, factor=1.05),
        lambda k, m: k.eps.EpsilonScaling.execute(m, 1.05)[0],
    ),
    Pair(
        "FreSca",
        lambda m: ours("FastcfgFreSca", model=m, low=0.8, high=1.25, cutoff=2),
        lambda k, m: k.fresca.FreSca.execute(m, 0.8, 1.25, 2)[0],
        frames=True,
    ),
    Pair(
        "Mahiro",
        lambda m: ours("FastcfgMahiro", model=m),
        lambda k, m: k.mahiro.Mahiro.execute(m)[0],
        batch=False,
    ),
]  # fmt: skip
SIGMAS = {"eps": 3.7, "v": 0.8, "flow": 0.6}
