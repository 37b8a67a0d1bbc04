"""Gates in hosts: eight steps in the host run fewer passes, and end where a ``GuidedDenoiser`` ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastcfg import Gate, GuidedDenoiser, Requests, Rule, State

__all__ = ["HOSTS", "check"]

STEPS = 8
SIGMAS = torch.linspace(1.0, 0.0, STEPS + 1, dtype=torch.float64)
X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GIVEN = {"uncond": torch.zeros(1, dtype=torch.float64), "cond": torch.ones(1, dtype=torch.float64)}
Run = tuple[int, Tensor]


class _Flow:
    """A flow's velocity that turns with the condition; counts its passes."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, x: Tensor, t: Any, label: Tensor) -> Tensor:
        self.passes += x.shape[0]
        times = t.double().reshape(-1, 1, 1, 1) if isinstance(t, Tensor) else t
        return torch.tanh(x + label.view(-1, 1, 1, 1) * (1 + times)) + 0.2 * x


def _conditions() -> dict[str, dict[str, Tensor]]:
    return {name: {"label": value} for name, value in GIVEN.items()}


def _denoiser(rule: Rule, gate: Gate | None) -> Run:
    model, state, x = _Flow(), State(), X
    denoiser = GuidedDenoiser(model, rule, gate=gate)
    for step in range(STEPS):
        t, dt = SIGMAS[step : step + 1], SIGMAS[step + 1] - SIGMAS[step]
        x = x + dt * denoiser(x, t, conditions=_conditions(), step=step, num_steps=STEPS, state=state)
    return model.passes, x


def _requests(rule: Rule, gate: Gate | None) -> Run:
    model, x = _Flow(), X
    batch = Requests(GuidedDenoiser(model, rule, gate=gate))
    batch.add("a", _conditions(), num_steps=STEPS)
    for step in range(STEPS):
        x = x + (SIGMAS[step + 1] - SIGMAS[step]) * batch(x, SIGMAS[step : step + 1])
    return model.passes, x


def _k_diffusion(rule: Rule, gate: Gate | None) -> Run:
    from fastcfg.adapters.k_diffusion import CFGDenoiser

    model, x = _Flow(), X
    options: dict[str, Any] = {"kind": "flow", "process": "flow", "argument": "label", "sigmas": SIGMAS}
    denoiser = CFGDenoiser(model, rule, gate=gate, **options)
    for step in range(STEPS):
        sigma = SIGMAS[step : step + 1]
        x = x + (x - denoiser(x, sigma, **GIVEN)) / sigma * (SIGMAS[step + 1] - SIGMAS[step])
    return model.passes, x


def _modular(rule: Rule, gate: Gate | None) -> Run:
    from fastcfg.adapters.diffusers import RuleGuidance

    model, guider, x = _Flow(), RuleGuidance(rule, gate=gate), X
    for step in range(STEPS):
        guider.set_state(step, STEPS, torch.tensor(step))
        batches = guider.prepare_inputs({"label": (GIVEN["cond"], GIVEN["uncond"])})
        for batch in batches:
            batch.noise_pred = model(x, SIGMAS[step : step + 1], batch.label)
        x = x + (SIGMAS[step + 1] - SIGMAS[step]) * guider(batches).pred
    return model.passes, x


def _vllm_omni(rule: Rule, gate: Gate | None) -> Run:
    from types import SimpleNamespace

    from fastcfg.adapters.vllm_omni import FusedCFG
    from fastcfg.denoiser.gates import gate_for

    model, x = _Flow(), X
    plain, own = gate_for(rule, gate)
    members = {"guidance": plain, "gate": own, "predict_noise": lambda _, **given: model(**given)}
    pipeline: Any = type("Pipeline", (FusedCFG,), members)()
    pipeline.scheduler = SimpleNamespace(timesteps=SIGMAS[:-1], step_index=None)
    for step in range(STEPS):
        pipeline.scheduler.step_index = step
        given = [{"x": x, "t": SIGMAS[step : step + 1], "label": GIVEN[name]} for name in ("cond", "uncond")]
        guess = pipeline.predict_noise_maybe_with_cfg(True, plain.scale, *given, False)  # type: ignore[attr-defined]
        x = x + (SIGMAS[step + 1] - SIGMAS[step]) * guess
    return model.passes, x


HOSTS: Mapping[str, Callable[[Rule, Gate | None], Run]] = {
    "Requests": _requests,
    "diffusers modular": _modular,
    "k-diffusion": _k_diffusion,
    "vllm-omni": _vllm_omni,
}
"""Hosts by their column, as their own loops call the adapters."""


def check(column: str, rule: Rule, gate: Gate | None = None) -> None:
    """Raise unless a host runs fewer passes under a gate, and ends where a ``GuidedDenoiser`` does.

    Raises:
        ValueError: saying how many passes were run, or how far off the result was.
    """
    if column not in HOSTS:
        return
    passes, got = HOSTS[column](rule, gate)
    expected, by = _denoiser(rule, gate)
    if not passes == expected < 2 * STEPS:
        raise ValueError(f"gate: ran {passes} of {2 * STEPS} passes, where {expected} do")
    if not (error := float((got - by).abs().max())) <= 1e-6 * float(by.abs().max()):
        raise ValueError(f"gate: {error} off the same policy in a GuidedDenoiser")
