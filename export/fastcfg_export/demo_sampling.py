"""The demo sampled through its exported graph, beside eager torch and a control one ulp away."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastcfg
from fastcfg.demo.data import NUM_COLOURS, NUM_DIGITS
from fastcfg.demo.diffusion import noise_scheduler
from fastcfg.demo.sample import draw_noise, labels
from fastcfg.files import write_atomically

from .engine import Engine
from .verification import one_ulp_up

__all__ = ["DemoSampling", "sample_demo"]

Denoise = Callable[..., Tensor]


@dataclass(frozen=True)
class DemoSampling:
    """The result of sampling the demo through its graph.

    Attributes:
        difference: largest difference of a pixel ``[-1, 1]`` between the graph's images and eager torch's.
        control: the same between eager torch and itself, the starting noise one ulp up.
        eager_ms, graph_ms: median of a whole run, interleaved; steps, images, threads: of a run.
        picture: a grid: eager, graph, their difference and the control's, 30,000 times.
    """

    difference: float
    control: float
    eager_ms: float
    graph_ms: float
    steps: int
    images: int
    threads: int
    runs_on: str
    picture: Path


@torch.no_grad()
def _sample(denoise: Denoise, conditions: Mapping[str, Any], noise: Tensor, steps: int) -> Tensor:
    scheduler: Any = noise_scheduler()
    scheduler.set_timesteps(steps)
    x = noise
    for step, t in enumerate(scheduler.timesteps.tolist()):
        x = scheduler.step(denoise(x, t, step=step, num_steps=steps, conditions=conditions), t, x).prev_sample
    return x


def sample_demo(
    engine: Engine,
    model: torch.nn.Module,
    folder: Path,
    *,
    steps: int = 20,
    seed: int = 0,
    rounds: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DemoSampling:
    """Sample every digit through an engine and through eager torch, and write ``demo.png`` and ``demo.json``.

    Args:
        engine: of the demo's model, with a rule of ``uncond`` and ``cond``.
        model: the demo's model; folder: for the files.
        steps: of DDIM; rounds: of the timing, each of one eager run and one of the graph.

    Raises:
        ValueError: for another rule.
    """
    rule = engine.rule
    if rule is None or rule.conditions != ("uncond", "cond"):
        raise ValueError(f"rule: the demo's pictures take one with uncond and cond, got {rule}")
    device = torch.device("cpu" if engine.runs_on == "onnxruntime" else "cuda")
    model = model.to(device)
    noise = draw_noise(NUM_DIGITS, seed, device)
    digit = torch.arange(NUM_DIGITS, device=device)
    conditions = {"uncond": labels(like=noise), "cond": labels(digit, digit % NUM_COLOURS, like=noise)}
    eager = fastcfg.GuidedDenoiser(model, rule)
    control = _sample(eager, conditions, one_ulp_up(noise), steps)
    times: dict[str, list[float]] = {"eager": [], "graph": []}
    images: dict[str, Tensor] = {}
    for round_ in range(rounds + 1):
        progress(round_, rounds + 1)
        for name, denoise in (("eager", eager), ("graph", engine)):
            started = time.perf_counter()
            # Taking the images to the CPU waits for the device.
            images[name] = _sample(denoise, conditions, noise, steps).cpu()
            if round_:  # The first of each warms up.
                times[name].append(1000 * (time.perf_counter() - started))
    progress(rounds + 1, rounds + 1)
    control = control.cpu()
    gaps = {"graph": images["graph"] - images["eager"], "control": control - images["eager"]}
    rows = {
        "eager torch": images["eager"],
        engine.runs_on: images["graph"],
        "difference × 30,000": 30_000 * gaps["graph"],
        "one-ulp control × 30,000": 30_000 * gaps["control"],
    }
    result = DemoSampling(
        difference=float(gaps["graph"].abs().max()),
        control=float(gaps["control"].abs().max()),
        eager_ms=round(statistics.median(times["eager"]), 1),
        graph_ms=round(statistics.median(times["graph"]), 1),
        steps=steps,
        images=len(noise),
        threads=torch.get_num_threads(),
        runs_on=engine.runs_on,
        picture=folder / "demo.png",
    )
    write_atomically(result.picture, _picture(rows, rule))
    write_atomically(
        folder / "demo.json", json.dumps({**vars(result), "picture": result.picture.name}, indent=2) + "\n"
    )
    return result


def _picture(rows: Mapping[str, Tensor], rule: fastcfg.Rule) -> bytes:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = 9.5, 0.75 * len(rows) + 0.6
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    for index, (name, images) in enumerate(rows.items()):
        axes = figure.add_axes((0.22, 1 - (0.45 + 0.75 * (index + 1)) / height, 0.76, 0.7 / height))
        line = torch.cat(list(images.clamp(-1, 1) / 2 + 0.5), dim=-1).permute(1, 2, 0)
        axes.imshow(line.numpy(), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        figure.text(0.21, 1 - (0.45 + 0.75 * (index + 0.5)) / height, name, ha="right", va="center", fontsize=9)
    figure.text(0.22, 1 - 0.2 / height, f"{rule}", ha="left", va="center", fontsize=9, weight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
