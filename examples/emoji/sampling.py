"""Sampling: DDIM around ``fastcfg.GuidedDenoiser``, whose pass over the predictions also takes the solver's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

import fastcfg

from .model import TextUNet
from .scenes import IMAGE_SIZE
from .weights import alphas
from .words import encode, words_of


@dataclass(frozen=True)
class Sampled:
    """Pictures and what they took.

    Attributes:
        pictures: float32 ``[B, 3, 40, 40]``, about [-1, 1], not clipped.
        passes: of the model over the batch.
        saved: passes that the rule has and that were not run.
    """

    pictures: Tensor
    passes: int
    saved: int

    @property
    def overshoot(self) -> float:
        """Return how far the pixels lie outside [-1, 1] on average, in % of the range's half."""
        return 100 * (self.pictures.abs() - 1).clamp(min=0).mean().item()


def draw_noise(count: int, seed: int = 0) -> Tensor:
    """Return starting noise ``[count, 3, 40, 40]``, the same for a seed whatever the count."""
    generators = [torch.Generator().manual_seed(seed * 10_007 + index) for index in range(count)]
    return torch.stack([torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=generator) for generator in generators])


@cache
def ddim(steps: int) -> fastcfg.Sampler:
    """Return the steps of DDIM on the model's schedule; the first starts at pure noise."""
    if not 1 <= steps <= 1000:
        raise ValueError(f"steps: expected 1-1000, got {steps}")
    times = [round(1000 - index * 1000 / steps) - 1 for index in range(steps)]
    levels = [*(alphas()[t].item() for t in times), 1.0]
    return fastcfg.Sampler.vp(levels, kind="v", timesteps=times)


def conditions(prompts: Mapping[str, Sequence[str]], like: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return the model's arguments for each prediction's prompts, one a sample or one for all; uncond is empty."""
    made = {}
    for name, texts in {"uncond": [""], **prompts}.items():
        rows = encode([words_of(text) for text in texts])
        made[name] = {"prompt": rows.expand(len(like), -1).contiguous()}
    return made


@torch.no_grad()
def sample(
    model: TextUNet,
    rule: fastcfg.Rule,
    prompts: Mapping[str, Sequence[str]],
    noise: Tensor,
    *,
    steps: int = 30,
    on_step: Callable[[], None] | None = None,
) -> Sampled:
    """Sample pictures.

    Args:
        rule: the guidance.
        prompts: for each of ``rule.conditions`` but ``uncond``, a prompt for every sample, or one for all.
        noise: where to start, ``[B, 3, 40, 40]``.
        on_step: called after each step.

    Raises:
        ValueError: a prompt has a word that the model does not know.
    """
    denoiser = fastcfg.GuidedDenoiser(model, rule)
    given = conditions(prompts, noise)
    given = {name: given[name] for name in rule.conditions}
    state = fastcfg.State()
    x = noise
    for step in ddim(steps):
        x = denoiser.step(x, step, conditions=given, state=state)
        if on_step is not None:
            on_step()
    report = denoiser.report()
    return Sampled(x, report.run, report.saved)


@torch.no_grad()
def clean_path(
    model: TextUNet, rule: fastcfg.Rule, prompts: Mapping[str, Sequence[str]], noise: Tensor, *, steps: int = 30
) -> tuple[Tensor, Tensor]:
    """Return what each step starts from and the clean picture it predicts, both ``[steps, B, 3, 40, 40]``."""
    denoiser = fastcfg.GuidedDenoiser(model, rule)
    given = conditions(prompts, noise)
    given = {name: given[name] for name in rule.conditions}
    state = fastcfg.State()
    noisy, clean = [], []
    x = noise
    for step in ddim(steps):
        noisy.append(x)
        assert step.timestep is not None  # ``ddim`` gave it.
        v = denoiser(
            x, step.timestep, conditions=given, step=step.index, num_steps=step.num_steps, sigma=step.sigma, state=state
        )
        clean.append(step.x0_x * x + step.x0_prediction * v)
        x = step.x * x + step.prediction * v
    return torch.stack(noisy), torch.stack(clean)
