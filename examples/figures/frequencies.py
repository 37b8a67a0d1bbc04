"""Draw what noise hides: spectra of the demo's images beside those of noise.

Use: ``python examples/figures/frequencies.py docs/images/frequencies.svg``.
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from fastcfg.demo.data import draw_batch, load_digits

SIGMAS = (0.1, 0.3, 1.0, 3.0)


def radial_power(images: Tensor) -> Tensor:
    """Return the mean power at each whole frequency, ``[N // 2]``, of square images ``[B, C, N, N]``."""
    size = images.shape[-1]
    power = torch.fft.fft2(images, norm="ortho").abs().square().mean(dim=(0, 1))
    axis = torch.fft.fftfreq(size) * size
    radius = (axis[:, None].square() + axis[None, :].square()).sqrt().round().long()
    rings = torch.zeros(int(radius.max()) + 1).index_add_(0, radius.flatten(), power.flatten())
    counts = torch.zeros_like(rings).index_add_(0, radius.flatten(), torch.ones(size * size))
    return (rings / counts)[: size // 2]


def main(path: str) -> None:
    """Write the figure."""
    images, _, _ = draw_batch(load_digits(held_out=True), 512, torch.Generator().manual_seed(0))
    power = radial_power(images - images.mean(dim=(0, 2, 3), keepdim=True))
    plt.rcParams["svg.hashsalt"] = "fastcfg"
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    frequency = range(1, len(power))
    axes.semilogy(frequency, power[1:], color="#1f77b4", linewidth=2, label="images of the demo")
    for sigma in SIGMAS:
        axes.axhline(sigma**2, color="#999999", linestyle=":")
        axes.annotate(f"noise, sigma {sigma:g}", (len(power) - 1, sigma**2), ha="right", va="bottom", color="#555555")
    axes.set(xlabel="cycles an image", ylabel="power", title="Noise hides high frequencies first")
    axes.legend(loc="lower left")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1])
