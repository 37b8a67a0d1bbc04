"""Your own loop: the line that combines the predictions becomes a call of ``fastcfg.guide``."""

from itertools import pairwise

import torch

import fastcfg


def model(x: torch.Tensor, t: float, label: torch.Tensor) -> torch.Tensor:
    """Stands for yours: the velocity of a flow, of a noisy batch, a time and a condition."""
    return x - torch.sin(label).view(-1, 1, 1, 1) * (1 - t)


rule = fastcfg.CFG(scale=5.0, rescale=0.7)
label, null = torch.tensor([1.0, 2.0]), torch.zeros(2)
times = torch.linspace(1.0, 0.0, 21).tolist()

start = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
x = start
for t, after in pairwise(times):
    uncond, cond = model(x, t, null), model(x, t, label)
    x = x + (after - t) * fastcfg.guide(rule, uncond=uncond, cond=cond)

# The same, with the solver's step in the same pass over the data.
y = start
for step, t in zip(fastcfg.Sampler.flow(times), times, strict=False):
    y = fastcfg.guide_step(rule, step, x=y, uncond=model(y, t, null), cond=model(y, t, label))

print(f"guide and guide_step agree within {float((x - y).abs().max()):.0e} after 20 steps")
assert torch.allclose(x, y, rtol=1e-5, atol=1e-5)
