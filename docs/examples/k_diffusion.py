"""A sampler in k-diffusion's style calls ``model(x, sigma, **extra_args)``: ``CFGDenoiser`` is such a model."""

from itertools import pairwise
from typing import Any

import torch

from fastcfg import CFG, schedules
from fastcfg.adapters.k_diffusion import CFGDenoiser


def sample_euler(model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict[str, Any]) -> torch.Tensor:
    """k-diffusion's Euler sampler, without its callbacks."""
    for sigma, after in pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
        x = x + (x - denoised) / sigma * (after - sigma)
    return x


def inner_model(x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    """The exact denoiser of a point for each condition among noise: clean samples of N(cond, 1)."""
    sigma, cond = sigma.view(-1, 1, 1, 1), cond.view(-1, 1, 1, 1)
    return (x + sigma**2 * cond) / (1 + sigma**2)


sigmas = torch.cat([torch.linspace(10.0, 0.1, 20), torch.zeros(1)])
x = 10.0 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
conditions = {"uncond": torch.zeros(2), "cond": torch.ones(2)}
for name, rule in {
    "CFG(1)": CFG(1.0),
    "CFG(4)": CFG(4.0),
    "CFG(4), second half": CFG(schedules.Interval(4.0, start=0.5)),
}.items():
    denoiser = CFGDenoiser(inner_model, rule, domain="eps", sigmas=sigmas[:-1])  # The rule works on noise.
    samples = sample_euler(denoiser, x, sigmas, extra_args=conditions)
    passes = denoiser.guided.passes_run
    print(f"{name}: mean {float(samples.mean()):.2f} of a condition at 1, {passes} passes")
