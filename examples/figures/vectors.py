"""Draw CFG as vectors, from the demo's real predictions.

Use: ``python examples/figures/vectors.py docs/images/vectors.svg``.
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch

from fastcfg import CFG, guide
from fastcfg.demo.checkpoint import load_denoiser
from fastcfg.demo.diffusion import noise_scheduler
from fastcfg.demo.sample import draw_noise, labels
from fastcfg.metrics.plane import plane

SCALES = (2, 3, 7)


@torch.no_grad()
def main(path: str) -> None:
    """Write the figure: u, c and the guided predictions of one sample in the middle of its sampling."""
    model, _ = load_denoiser()
    x, scheduler = draw_noise(1, seed=3), noise_scheduler()
    scheduler.set_timesteps(20)
    asked = labels(torch.tensor([8]), torch.tensor([0]), like=x)
    for step, t in enumerate(scheduler.timesteps.tolist()):
        u, c = model(x, t, **labels(like=x)), model(x, t, **asked)
        if step == 10:
            break
        x = scheduler.step(guide(CFG(3.0), uncond=u, cond=c), t, x).prev_sample
    points = plane(u, c, *(guide(CFG(float(s)), uncond=u, cond=c) for s in SCALES)).numpy()

    plt.rcParams["svg.hashsalt"] = "fastcfg"
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    names = ["uncond (s = 0)", "cond (s = 1)", *(f"s = {s}" for s in SCALES)]
    colours = ["#555555", "#1f77b4", "#2ca02c", "#ff7f0e", "#d62728"]
    for point, name, colour in zip(points, names, colours, strict=True):
        axes.annotate("", point, (0, 0), arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.6})
        axes.annotate(name, point, textcoords="offset points", xytext=(6, 2), color=colour)
    axes.plot(points[[0, -1], 0], points[[0, -1], 1], ":", color="#999999")
    low, high = points.min(axis=0), points.max(axis=0)
    axes.set(
        xlim=(min(low[0], 0) - 1, high[0] * 1.25 + 1),
        ylim=(min(low[1], 0) - 1, high[1] * 1.1 + 1),
        aspect="equal",
        xlabel="along uncond",
        ylabel="perpendicular to uncond",
        title="CFG goes on in a straight line from uncond through cond",
    )
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1])
