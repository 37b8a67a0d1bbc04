"""Gates in diffusers' guiders and modular pipelines: passes that ran, and values beside a denoiser's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance.tiny_modular import pictures, sdxl, wan
from diffusers import guiders as stock
from torch import Tensor

import fastcfg.adapters.diffusers as fused
from fastcfg import APG, CFG, Gate, GatedCFG, GuidedDenoiser, MultiCondition, PerpNeg, Rule, State

STEPS = 8
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def model(x: Tensor, t: float, y: Tensor) -> Tensor:
    return torch.tanh(x * (1 + 0.1 * t)) + 1.1**t * y.sin()


def conditions_of(rule: Rule) -> dict[str, dict[str, Tensor]]:
    return {n: {"y": torch.full((2, 1, 1, 1), float(i), dtype=torch.float64)} for i, n in enumerate(rule.conditions)}


def by_guider(guider: Any, rule: Rule, steps: int = STEPS) -> tuple[list[int], Tensor]:
    """Passes at each step and the last latent of a run whose loop is a modular pipeline's."""
    x, counts, given = X, [], conditions_of(rule)
    for step in range(steps):
        guider.set_state(step, steps, torch.tensor(step))
        order = sorted(given, key=lambda n: guider._place_of[n]) if hasattr(guider, "_place_of") else ["cond", "uncond"]
        batches = guider.prepare_inputs({"y": tuple(given[n]["y"] for n in order)})
        counts.append(len(batches))
        assert guider.num_conditions == len(batches)
        for batch in batches:
            batch.noise_pred = model(x, float(step), batch.y)
        x = x - 0.05 * guider(batches).pred
    return counts, x


def by_denoiser(rule: Rule, gate: Gate, steps: int = STEPS) -> tuple[list[int], Tensor]:
    denoiser, state, x, counts = GuidedDenoiser(model, rule, gate=gate), State(), X, []
    for step in range(steps):
        before = denoiser.passes_run
        x = x - 0.05 * denoiser(x, float(step), conditions=conditions_of(rule), step=step, num_steps=steps, state=state)
        counts.append(denoiser.passes_run - before)
    return counts, x


GATES = [
    Gate(every=3), Gate(until=0.5), Gate(drift=0.3), Gate(stop=0.4), Gate(cosine=0.8),
    Gate(steps=(0, 1, 4), num_steps=STEPS, weights=((1.1, -0.1),) * STEPS),
]  # fmt: skip


@pytest.mark.parametrize("gate", GATES, ids=lambda g: ",".join(list(g.to_dict())[1:]))
@pytest.mark.parametrize(
    "rule",
    [CFG(4.0), APG(4.0, momentum=-0.5), PerpNeg(4.0), MultiCondition((3.0, 2.0))],
    ids=lambda r: type(r).__name__,
)
def test_a_gated_guider_is_a_gated_denoiser(rule: Rule, gate: Gate) -> None:
    guider = fused.RuleGuidance(rule, gate=gate)
    counts, got = by_guider(guider, rule)
    expected_counts, expected = by_denoiser(rule, gate)
    assert counts == expected_counts
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    again = fused.RuleGuidance.from_config(json.loads(guider.to_json_string()))
    assert again.gate == gate and by_guider(again, rule)[0] == counts
    assert by_guider(guider, rule)[0] == counts, "a second run begins anew"


def test_drift_and_stop_count_in_a_rule_s_guider() -> None:
    for options in ({"drift": 0.05}, {"every": 1, "stop": 100.0}, {"every": 3}):
        rule = GatedCFG(4.0, **{"every": 50, **options})  # type: ignore[arg-type]
        guider = fused.RuleGuidance(rule)
        assert by_guider(guider, CFG(4.0))[0] == by_denoiser(CFG(4.0), guider.gate)[0]
    assert by_guider(fused.RuleGuidance(GatedCFG(4.0, 50)), CFG(4.0))[0] == [2] + [1] * (STEPS - 1)


def test_the_counterparts_of_diffusers_own_take_a_gate() -> None:
    for make in (
        fused.FusedClassifierFreeGuidance,
        fused.FusedAdaptiveProjectedGuidance,
        fused.FusedMagnitudeAwareGuidance,
    ):
        counts, got = by_guider(make(guidance_scale=4.0, gate=Gate(every=4)), CFG(4.0))
        full = by_guider(make(guidance_scale=4.0), CFG(4.0))[1]
        assert counts == [2, 1, 1, 1, 2, 1, 1, 1] and 0 < (got - full).abs().max() < (full - X).abs().max()
    window = by_guider(fused.FusedClassifierFreeGuidance(4.0, gate=Gate(every=3), start=0.25, stop=0.9), CFG(4.0))[0]
    assert window == [1, 1, 2, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("pipe", [sdxl, wan])
def test_a_modular_pipeline_runs_fewer_passes(pipe: Callable[[], Any]) -> None:
    made, calls = pipe(), []
    denoiser = getattr(made, "unet", None) or made.transformer
    hook = denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    results, counts = [], []
    try:
        for rule, gate in (
            (CFG(5.0), None),
            (CFG(5.0), Gate(until=0.0)),
            (GatedCFG(5.0, 50), None),
            (CFG(5.0, rescale=0.4), Gate(every=2)),
        ):
            calls.clear()
            results.append(pictures(made, fused.RuleGuidance(rule, gate=gate)))
            counts.append(len(calls))
    finally:
        hook.remove()
        made.update_components(guider=stock.ClassifierFreeGuidance(guidance_scale=5.0))
    steps = counts[0] // 2
    assert counts == [2 * steps, steps + 1, steps + 1, steps + -(-steps // 2)]
    assert torch.equal(results[1], results[2]) and not torch.equal(results[0], results[1])
    with fused.fuse(made, gate=Gate(every=2)):
        assert made.guider.gate == Gate(every=2)


def test_errors_name_the_gate() -> None:
    with pytest.raises(ValueError, match="gate: the rule has one of its own"):
        fused.RuleGuidance(GatedCFG(4.0), gate=Gate(2))
    with pytest.raises(TypeError, match=r"gate: expected a fastcfg\.Gate"):
        fused.RuleGuidance(CFG(4.0), gate=2)
    with pytest.raises(ValueError, match="scheduler: the gate remembers deltas in a space"):
        by_guider(fused.RuleGuidance(CFG(4.0), gate=Gate(2, space="x0")), CFG(4.0))
    with pytest.raises(ValueError, match="gate: it is for runs of 4 steps"):
        by_guider(fused.RuleGuidance(CFG(4.0), gate=Gate(steps=(0,), num_steps=4)), CFG(4.0))
