"""Whole trajectories of diffusers' schedulers: ours and theirs beside the papers' formulas in float64.

The predictions are drawn beforehand, so that a trajectory is linear in its inputs and an error travels by known
weights: ``error' = |w_x| error + |w_previous| error of x0 + what this step's roundings add``. With u = 2^-24, at most

* ours: ``8 u`` times the magnitudes of its terms (three roundings of a weight, a product, four additions);
* the peer, whose scalars are float32 too: ``16 u`` times the magnitudes of everything it adds up on the way, and what
  the rounded scalars do where a difference has cancelled (``Peer.scalars``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from conformance.oracles import solvers as oracle
from conformance.oracles.arrays import Array
from fastcfg import CFG, Sampler, State, guide_step
from fastcfg.samplers import Step, from_scheduler

UNIT = 2.0**-24
SHAPE = (2, 4, 6, 8)
SCALE = 7.5
KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}


@dataclass(frozen=True)
class Run:
    """A scheduler, its options, and how its step is called."""

    scheduler: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 20
    eta: float = 0.0
    timesteps: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        scheduler = self.scheduler(**self.options)
        scheduler.set_timesteps(self.steps, **self.timesteps)
        return scheduler

    def __str__(self) -> str:
        name = self.scheduler.__name__.replace("Scheduler", "").replace("Discrete", "")
        return "-".join([name, *(str(v) for v in self.options.values()), str(self.steps), *["eta"] * (self.eta > 0)])


def each(scheduler: Callable[..., Any], kinds: str, *options: Mapping[str, Any], **rest: Any) -> list[Run]:
    return [Run(scheduler, {"prediction_type": kind, **o}, **rest) for kind in kinds.split() for o in options or ({},)]


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
KARRAS = {"use_karras_sigmas": True, **SD}
UNCLIPPED = {"clip_sample": False, **SD}
DPM = DPMSolverMultistepScheduler
RUNS = [
    Run(FlowMatchEulerDiscreteScheduler),
    Run(FlowMatchEulerDiscreteScheduler, {"shift": 3.0}, steps=7),
    Run(FlowMatchEulerDiscreteScheduler, {"use_dynamic_shifting": True}, timesteps={"mu": 0.8}),
    *each(EulerDiscreteScheduler, "epsilon v_prediction sample", SD, KARRAS),
    *each(EulerDiscreteScheduler, "epsilon", {**SD, "timestep_spacing": "trailing"}, steps=9),
    *each(EulerAncestralDiscreteScheduler, "epsilon v_prediction", SD),
    *each(DDIMScheduler, "epsilon v_prediction sample", UNCLIPPED),
    *each(DDIMScheduler, "epsilon", {**UNCLIPPED, "set_alpha_to_one": False, "timestep_spacing": "linspace"}, steps=7),
    *each(DDIMScheduler, "v_prediction", {**UNCLIPPED, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    *each(DDIMScheduler, "epsilon v_prediction", UNCLIPPED, eta=1.0),
    *each(DDIMScheduler, "sample", UNCLIPPED, eta=0.4),
    *each(DPM, "epsilon v_prediction sample", SD, KARRAS),
    *each(DPM, "epsilon", SD, {**SD, "euler_at_final": True}, {**SD, "final_sigmas_type": "sigma_min"}, steps=8),
    *each(DPM, "epsilon v_prediction", {**SD, "solver_type": "heun"}, {**SD, "solver_order": 1}),
    *each(DPM, "flow_prediction", {"use_flow_sigmas": True, "flow_shift": 3.0}),
    *each(DPM, "epsilon", {**SD, "algorithm_type": "sde-dpmsolver++"}),
]


@dataclass
class Draw:
    """The model's answers and the noise, step by step, in float32."""

    x: torch.Tensor
    uncond: list[torch.Tensor]
    cond: list[torch.Tensor]
    noise: list[torch.Tensor]

    @staticmethod
    def of(scheduler: Any) -> Draw:
        generator = torch.Generator().manual_seed(1)
        count = len(scheduler.timesteps)

        def many() -> list[torch.Tensor]:
            return [torch.randn(SHAPE, generator=generator) for _ in range(count)]

        uncond = many()
        cond = [u + 0.3 * d for u, d in zip(uncond, many(), strict=True)]
        x = torch.randn(SHAPE, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        return Draw(x, uncond, cond, noise(count))


def noise(count: int) -> list[torch.Tensor]:
    """What a scheduler draws from a generator of seed 2 in so many steps."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def peer_trajectory(run: Run, scheduler: Any, draw: Draw) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Guidance, ``scale_model_input`` and ``step`` as a pipeline calls them: model inputs and latents."""
    x, found = draw.x, []
    generator = torch.Generator().manual_seed(2)
    for k, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        guided = draw.uncond[k] + SCALE * (draw.cond[k] - draw.uncond[k])
        options: dict[str, Any] = {}
        if run.eta:
            options = {"eta": run.eta, "variance_noise": draw.noise[k]}
        elif "Ancestral" in type(scheduler).__name__ or run.options.get("algorithm_type") == "sde-dpmsolver++":
            options = {"generator": generator}
        x = scheduler.step(guided, t, x, return_dict=False, **options)[0]
        found.append((scaled, x))
    return found


def our_trajectory(sampler: Sampler, draw: Draw, backend: str | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, state, found = draw.x, State(), []
    batch = sampler.steps[0].model_input(x, copies=2)
    for k, step in enumerate(sampler):
        scaled = batch[: SHAPE[0]].clone()
        assert torch.equal(scaled, batch[SHAPE[0] :])
        given = {} if step.noise is None else {"noise": draw.noise[k]}
        x = guide_step(
            CFG(SCALE), step, x=x, state=state, uncond=draw.uncond[k], cond=draw.cond[k], batch_out=batch,
            backend=backend, **given,
        )  # fmt: skip
        found.append((scaled, x))
    return found


class Exact:
    """The trajectory in float64, and what the bounds need: the magnitudes at each step."""

    def __init__(self, run: Run, scheduler: Any, sampler: Sampler, draw: Draw) -> None:
        self.scheduler, self.run, self.name = scheduler, run, type(scheduler).__name__
        self.kind = KINDS[scheduler.config.get("prediction_type", "flow_prediction")]
        self.latents: list[Array] = []
        x = draw.x.double().numpy()
        previous: Array | None = None
        ours = theirs = 0.0
        kept = [0.0, 0.0]  # Errors of the clean sample that is kept.
        self.bounds: list[tuple[float, float]] = []
        for k, step in enumerate(sampler):
            u, c, e = (tensors[k].double().numpy() for tensors in (draw.uncond, draw.cond, draw.noise))
            guided = u + SCALE * (c - u)
            after, x0, eps = self.step(k, x, guided, e, previous)
            size = {"x": x, "p": np.abs(u) + SCALE * np.abs(c - u), "e": e, "d": 0.0 if previous is None else previous}
            size = {name: float(np.max(np.abs(value))) for name, value in size.items()}
            weights = {"x": step.x, "p": step.prediction, "d": step.previous_x0 or 0.0, "e": step.noise or 0.0}
            own = 8 * UNIT * sum(abs(w) * size[n] for n, w in weights.items())
            clean = abs(step.x0_x) * size["x"] + abs(step.x0_prediction) * size["p"]
            their = UNIT * self.roundings(k, step, size, clean, float(np.max(np.abs(eps))))
            new = [own + abs(weights["x"]) * ours + abs(weights["d"]) * kept[0]]
            new += [their + abs(weights["x"]) * theirs + abs(weights["d"]) * kept[1]]
            kept = [abs(step.x0_x) * e + 8 * UNIT * clean for e in (ours, theirs)]
            ours, theirs = new
            self.bounds.append((ours, theirs))
            self.latents.append(after)
            x, previous = after, x0

    def level(self, k: int) -> tuple[float, float]:
        sigma = float(self.scheduler.sigmas[k])
        if self.scheduler.config.get("use_flow_sigmas") or self.name.startswith("Flow"):
            return 1 - sigma, sigma
        return 1 / math.sqrt(sigma**2 + 1), sigma / math.sqrt(sigma**2 + 1)

    def products(self, k: int) -> tuple[float, float]:
        s = self.scheduler
        t = int(s.timesteps[k])
        back = t - s.config.num_train_timesteps // s.num_inference_steps
        return float(s.alphas_cumprod[t]), float(s.alphas_cumprod[back] if back >= 0 else s.final_alpha_cumprod)

    def step(self, k: int, x: Array, guided: Array, noise: Array, previous: Array | None) -> tuple[Array, Array, Array]:
        """The latent after step k, and the clean sample and the noise that it stands for."""
        solve = partial(oracle.clean_and_noise, prediction=guided, kind=self.kind)
        if self.name.startswith("DDIM"):
            now, after = self.products(k)
            x0, eps = solve(x=x, alpha=math.sqrt(now), sigma=math.sqrt(1 - now))
            products = {"product": now, "next_product": after}
            return oracle.ddim(x0=x0, eps=eps, noise=noise, eta=self.run.eta, **products), x0, eps
        sigmas = [float(s) for s in self.scheduler.sigmas[k : k + 2]]
        alpha, sigma = self.level(k)
        if self.name.startswith("Euler"):
            x0, eps = solve(x=x * alpha, alpha=alpha, sigma=sigma)
            if "Ancestral" in self.name:
                return oracle.euler_ancestral(x=x, x0=x0, noise=noise, sigma=sigmas[0], next_sigma=sigmas[1]), x0, eps
            return oracle.euler(x=x, x0=x0, sigma=sigmas[0], next_sigma=sigmas[1]), x0, eps
        x0, eps = solve(x=x, alpha=alpha, sigma=sigma)
        if self.name.startswith("Flow"):
            return oracle.flow_euler(x=x, velocity=guided, sigma=sigmas[0], next_sigma=sigmas[1]), x0, eps
        config = self.scheduler.config
        last, second = k == len(self.scheduler.timesteps) - 1, config.solver_order == 2
        short = config.lower_order_final and len(self.scheduler.timesteps) < 15
        first_order_last = config.euler_at_final or short or config.final_sigmas_type == "zero"
        history = previous if second and not (last and first_order_last) else None
        levels = (self.level(max(k - 1, 0)), (alpha, sigma), self.level(k + 1))
        if config.algorithm_type == "sde-dpmsolver++":
            return oracle.sde_dpm_solver_2m(x=x, x0=x0, previous_x0=history, noise=noise, levels=levels), x0, eps
        solved = oracle.dpm_solver_2m(x=x, x0=x0, previous_x0=history, levels=levels, solver_type=config.solver_type)
        return solved, x0, eps

    def roundings(self, k: int, step: Step, size: Mapping[str, float], clean: float, eps: float) -> float:
        """The peer's roundings of a step, in units of u: of the terms that it adds, and of its scalars."""
        if self.name.startswith("DDIM"):
            now, after = self.products(k)
            total = clean + eps + size["x"] + size["p"] + size["e"]
            if not self.run.eta or after == 1:
                return 16 * total
            # 1 - now/after has cancelled, and so has 1 - after - spread^2.
            spread = self.run.eta**2 * (1 - after) / (1 - now) * (1 - now / after)
            lost = 4 / (1 - now / after)
            left = 1 - after - spread
            return 16 * total + lost * (math.sqrt(spread) * size["e"] + (spread + 1 - after) / math.sqrt(left) * eps)
        sigma, after = (float(s) for s in self.scheduler.sigmas[k : k + 2])
        if not self.name.startswith("DPM"):
            total = size["x"] + clean + max(sigma, 1.0) * size["p"] + after * size["e"]
            if "Ancestral" not in self.name or after == 0:
                return 16 * total
            lost = 4 * (sigma**2 + after**2) / (sigma**2 - after**2)  # sigma^2 - after^2 has cancelled.
            up = after * math.sqrt(1 - (after / sigma) ** 2)
            down = after**2 / sigma
            slope = lost * (up**2 + after**2) / (2 * down) + lost * after
            return 16 * total + slope * eps + lost * up * size["e"]
        levels = [self.level(i) for i in (max(k - 1, 0), k, k + 1)]
        logs = [[abs(math.log(v)) if v else 0.0 for v in level] for level in levels]
        size_of_log = 4 * max(max(pair) for pair in logs) + 4  # Absolute errors of a step in log(alpha/sigma).
        total = 16 * (size["x"] + clean + size["d"] + size["e"])
        if levels[2][1] == 0 or levels[1][0] == 0:
            return total
        h = math.log(levels[2][0] / levels[2][1]) - math.log(levels[1][0] / levels[1][1])
        scalar = (size_of_log + 2) / -math.expm1(-h)  # Relative error of exp(-h) - 1.
        if step.previous_x0 and levels[0][0]:
            before = math.log(levels[1][0] / levels[1][1]) - math.log(levels[0][0] / levels[0][1])
            slope = size_of_log / h + size_of_log / before
            total += (2 * scalar + slope + 16) * 3 * abs(step.previous_x0) * (clean + size["d"])
        share = levels[2][0] * -math.expm1(-h)
        total += scalar * share * clean
        if step.noise:
            total += 2 * scalar * levels[2][1] * size["e"] + 2 * size_of_log * size["x"]
        return total


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_trajectories_are_diffusers(run: Run) -> None:
    scheduler = run.make()
    draw = Draw.of(scheduler)
    sampler = from_scheduler(scheduler, eta=run.eta)
    exact = Exact(run, scheduler, sampler, draw)
    ours = our_trajectory(sampler, draw)
    peer = peer_trajectory(run, scheduler, draw)
    assert len(ours) == len(peer) == len(exact.latents)
    for k, (latent, (own, their)) in enumerate(zip(exact.latents, exact.bounds, strict=True)):
        assert own + their < 0.02 * np.abs(latent).max(), f"step {k}: the bound says nothing"
        for name, found, bound in (("ours", ours, own), ("peer", peer, their)):
            error = np.abs(found[k][1].double().numpy() - latent).max()
            assert error <= bound, f"step {k}: {name} is off by {error:.3e}, bound {bound:.3e}"
        # The model's input: x of the step before, scaled in float32 by both.
        before = np.abs(draw.x.numpy() if k == 0 else exact.latents[k - 1]).max()
        drift = 0.0 if k == 0 else sum(exact.bounds[k - 1])
        gap = (ours[k][0] - peer[k][0]).abs().max().item()
        assert gap <= sampler.steps[k].input_scale * (drift + 8 * UNIT * before), f"step {k}: model input"
    assert [step.timestep for step in sampler] == [float(t) for t in scheduler.timesteps]
