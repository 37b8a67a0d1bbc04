"""What lasts from step to step: momentum, schedules, zero-init."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conformance.oracles.classifier_free import cfg as cfg_oracle
from torch import Tensor

from . import protocol as fake
from .harness import FLOW, SIGMAS, apply, noise


def apg(x: Tensor, sigmas: Tensor, cfg: float) -> Tensor:
    """The run with momentum in float64."""
    x, average = x.double(), 0.0
    for sigma, after in zip(sigmas[:-1].double(), sigmas[1:].double(), strict=True):
        c, u = (fake.predict(x, value).numpy() for value in (1.0, -0.5))
        average = (c - u) - 0.6 * average
        y = torch.from_numpy(c + cfg * average)
        x = x + (x - y) / sigma * (after - sigma)
    return x


def test_momentum_lasts_a_run_and_no_longer() -> None:
    model = apply("FastcfgAPG", fake.Patcher(), eta=1.0, norm_threshold=0.0, momentum=-0.6)
    x = noise((2, 4, 6, 8)) * 0.1
    expected = apg(x, SIGMAS, 0.7)
    for patched in (model, model, model.clone()):
        got = fake.run(patched, x, 0.7, SIGMAS)
        assert torch.allclose(got.double(), expected, atol=1e-4)
    assert not torch.allclose(apg(x, SIGMAS[:2], 0.7), expected, atol=1e-2)


def test_momentum_of_interleaved_runs_and_clones_is_their_own() -> None:
    model = apply("FastcfgAPG", fake.Patcher(), momentum=-0.6)
    starts = [noise((1, 4, 6, 8), seed) for seed in (0, 1)]
    alone = [fake.run(model, x, 5.0, SIGMAS) for x in starts]
    turns: list[Any] = []

    def recorded(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
        turns.append((denoise, x))
        return x

    # Both runs begin, then step in turn.
    guiders = []
    for patched, x in zip((model, model.clone()), starts, strict=True):
        guider = fake.Guider(patched)
        guider.set_conds(fake.conditioning(1.0), fake.conditioning(-0.5))
        guider.set_cfg(5.0)
        guider.sample(x, SIGMAS, recorded)
        guiders.append(guider)
    latents = [x for _, x in turns]
    for sigma, after in itertools.pairwise(SIGMAS):
        for i, (denoise, _) in enumerate(turns):
            slope = (latents[i] - denoise(latents[i], sigma.expand(1))) / sigma
            latents[i] = latents[i] + slope * (after - sigma)
    for got, expected in zip(latents, alone, strict=True):
        assert torch.equal(got, expected)


def test_momentum_without_wrappers_begins_anew_when_the_noise_rises() -> None:
    """As in a ComfyUI without them, and for samplers that restart."""
    model = apply("FastcfgAPG", fake.Patcher(), momentum=-0.6)
    model.wrappers = {}
    x = noise((1, 4, 6, 8))
    expected = fake.run(model, x, 5.0, SIGMAS)

    def twice(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
        fake.euler(denoise, x, sigmas)
        return fake.euler(denoise, x, sigmas)

    assert torch.equal(fake.run(model, x, 5.0, SIGMAS, solver=twice), expected)


@pytest.mark.parametrize("copies", ["shallow", "nested"])
def test_momentum_survives_options_that_are_copied_at_each_step(copies: str) -> None:
    model = apply("FastcfgAPG", fake.Patcher(), momentum=-0.6)
    x = noise((1, 4, 6, 8))
    expected = fake.run(model, x, 5.0, SIGMAS)

    class Copying(fake.Guider):
        def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
            options = dict(model_options) if copies == "shallow" else fake._nested(model_options)
            return super().predict_noise(x, timestep, options)

    guider = Copying(model)
    guider.set_conds(fake.conditioning(1.0), fake.conditioning(-0.5))
    guider.set_cfg(5.0)
    assert torch.equal(guider.sample(x, SIGMAS), expected)


def test_schedule_takes_the_place_of_cfg() -> None:
    model = apply("FastcfgSchedule", fake.Patcher(), curve="linear", start=1.0, end=4.0)
    x = noise((1, 4, 6, 8)) * 0.1
    expected = x
    for i, (sigma, after) in enumerate(itertools.pairwise(SIGMAS)):
        y = torch.lerp(fake.predict(expected, -0.5), fake.predict(expected, 1.0), 1.0 + i)
        expected = expected + (expected - y) / sigma * (after - sigma)
    for cfg in (1.0, 9.0):
        assert torch.allclose(fake.run(model, x, cfg, SIGMAS), expected, atol=1e-4)
    assert [len(call) for call in model.model.calls] == 2 * [1, 2, 2, 2], "one pass where the scale is 1"


def test_schedule_of_a_second_order_sampler_counts_steps_and_not_calls() -> None:
    model = apply("FastcfgSchedule", fake.Patcher(), curve="linear", start=2.0, end=5.0)
    seen: list[Tensor] = []

    def middle(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
        for sigma in (8.0, 6.3, 5.0, 3.0, 2.0, 0.5):
            seen.append(denoise(x, torch.full((1,), sigma)))
        return x

    x = noise((1, 4, 6, 8))
    fake.run(model, x, 7.0, SIGMAS, solver=middle)
    for got, scale in zip(seen, (2.0, 2.0, 3.0, 3.0, 4.0, 5.0), strict=True):
        exact = cfg_oracle(uncond=fake.predict(x, -0.5).numpy(), cond=fake.predict(x, 1.0).numpy(), scale=scale)
        assert np.allclose(got.numpy(), exact, atol=1e-4)


def test_zero_init_stands_still() -> None:
    model = apply("FastcfgCFGZeroStar", fake.Patcher(fake.CONST), zero_init_steps=2)
    seen: list[tuple[Tensor, Tensor]] = []

    def solver(denoise: Callable[..., Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
        for sigma in sigmas[:-1]:
            seen.append((x, denoise(x, sigma.expand(x.shape[0]))))
        return x

    fake.run(model, noise((2, 4, 6, 8)), 5.0, FLOW, solver=solver)
    for i, (x, y) in enumerate(seen):
        assert torch.allclose(x, y, atol=1e-5) == (i < 2), "a velocity of zero is the latent itself"


def test_a_schedule_needs_the_samplers_noise_levels() -> None:
    model = apply("FastcfgSchedule", fake.Patcher())
    args = {"input": noise((1, 4, 6, 8)), "sigma": torch.ones(1), "model": model.model, "model_options": {}}
    with pytest.raises(RuntimeError, match="sample_sigmas"):
        model.model_options["sampler_calc_cond_batch_function"]({**args, "conds": [[{}], [{}]]})
