"""Gates in diffusers' classic pipelines: rows that the denoiser got, and latents beside the same policy by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from conformance.tiny_pipelines import CASES, drawn, embeds, made
from torch import Tensor

from fastcfg import APG, CFG, Gate, GatedCFG, GuidedDenoiser, InstructPix2Pix, PerpNeg, Rescale, Rule, State
from fastcfg.adapters.diffusers import guided
from fastcfg.denoiser.planner import run_cost

STEPS = 8
GATES = [
    Gate(every=3),
    Gate(until=0.5),
    Gate(drift=0.4),
    Gate(steps=(0, 1, 4), num_steps=STEPS, weights=((1.1, -0.1),) * STEPS),
    Gate(cosine=0.5),
]


@contextmanager
def rows_of(pipe: Any) -> Iterator[list[int]]:
    """Samples in each call of the pipeline's denoisers, counted inside of these."""
    rows: list[int] = []

    def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor | list))
        rows.append(len(first))

    names = ("unet", "transformer", "transformer_2", "prior")
    parts = [part for name in names if (part := getattr(pipe, name, None)) is not None]
    hooks = [part.register_forward_pre_hook(count, with_kwargs=True) for part in parts]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def by_hand(name: str, rule: Rule, gate: Gate) -> tuple[int, Tensor]:
    """Passes and latents of a run with :class:`fastcfg.GuidedDenoiser` around the pipeline's denoisers."""
    pipe = made(name)
    scheduler, state = copy.deepcopy(pipe.scheduler), State()
    scheduler.set_timesteps(STEPS)
    conditions = {"uncond": {"encoder_hidden_states": embeds(2)}, "cond": {"encoder_hidden_states": embeds(1)}}
    high = GuidedDenoiser(
        lambda x, t, **given: pipe_call(getattr(pipe, "unet", None) or pipe.transformer, x, t, given), rule, gate=gate
    )
    low = GuidedDenoiser(lambda x, t, **given: pipe_call(pipe.transformer_2, x, t, given), rule, gate=gate)
    x = latents(name) * getattr(scheduler, "init_noise_sigma", 1.0)
    boundary = None if name != "wan_two_stages" else pipe.config.boundary_ratio * scheduler.config.num_train_timesteps
    for step, t in enumerate(scheduler.timesteps):
        inputs = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        which = high if boundary is None or t >= boundary else low
        guess = which(inputs, t, conditions=conditions, step=step, num_steps=STEPS, state=state)
        (x,) = scheduler.step(guess, t, x, return_dict=False)[:1]
    return high.passes_run + low.passes_run, torch.as_tensor(x)


def pipe_call(denoiser: Any, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
    times = t.expand(x.shape[0])
    key = "sample" if isinstance(denoiser, diffusers.UNet2DConditionModel) else "hidden_states"
    result: Tensor = denoiser(**{key: x, "timestep": times}, **given, return_dict=False)[0]
    return result


def latents(name: str) -> Tensor:
    return drawn(2, 4, 8, 8, seed=5) if name == "sd" else drawn(2, 4, 2, 4, 4, seed=5)


@pytest.mark.parametrize("gate", GATES, ids=lambda g: ",".join(list(g.to_dict())[1:]))
@pytest.mark.parametrize("name", ["sd", "wan", "wan_two_stages"])
def test_a_gated_pipeline_is_a_gated_denoiser(name: str, gate: Gate) -> None:
    rule, pipe = CFG(5.0, rescale=0.3), made(name)
    with guided(pipe, rule, gate=gate) as guidance, rows_of(pipe) as rows:
        ours = CASES[name].run(3.0, num_inference_steps=STEPS, latents=latents(name))
    passes, expected = by_hand(name, rule, gate)
    assert sum(rows) == 2 * guidance.passes_run == 2 * passes < 2 * 2 * STEPS
    # Passes run alone or in a batch differ by roundings, which a run of eight steps carries on.
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_an_expert_has_a_memory_of_its_own() -> None:
    pipe = made("wan_two_stages")
    for rule in (GatedCFG(5.0, every=100), {"transformer": CFG(5.0), "transformer_2": CFG(5.0)}):
        gate = None if isinstance(rule, Rule) else Gate(until=0.0)
        with guided(pipe, rule, gate=gate) as guidance, rows_of(pipe) as rows:  # type: ignore[arg-type]
            CASES["wan_two_stages"].run(3.0, num_inference_steps=STEPS)
        assert guidance.passes_run == STEPS + 2, "one fresh pass for each expert"
        assert rows == [2] * (STEPS + 2)


@pytest.mark.parametrize("steps", [8, 30])
@pytest.mark.parametrize(
    ("name", "full"),
    [("sd", 2), ("sdxl", 2), ("sd3", 2), ("ltx", 2), ("ip2p", 3), ("flux", 2), ("wan", 2), ("qwen", 2), ("z_image", 2)],
)
def test_left_out_passes_are_not_run(name: str, full: int, steps: int) -> None:
    pipe, rule = made(name), InstructPix2Pix(5.0, 1.5) if name == "ip2p" else CFG(5.0)
    gate = Gate(every=2, until=0.6)
    with guided(pipe, rule, gate=gate) as guidance, rows_of(pipe) as rows:
        CASES[name].run(3.0, num_inference_steps=steps)
    expected = run_cost(rule, guidance.num_steps, gate=gate).nfe
    assert guidance.passes_run == expected < full * steps
    assert name == "z_image" or sum(rows) == 2 * expected
    assert guidance.passes_run + guidance.passes_saved == full * guidance.step


def test_a_condition_of_its_own_is_left_out_too() -> None:
    pipe, case = made("sd"), CASES["sd"]
    with (
        guided(pipe, PerpNeg(5.0), gate=Gate(every=4), conditions={"negative": case.negative()}) as guidance,
        rows_of(pipe) as rows,
    ):
        case.run(3.0, num_inference_steps=STEPS)
    assert guidance.passes_run == 3 * 2 + 6 == sum(rows) // 2


def test_a_prompt_that_changes_during_the_run_is_fresh() -> None:
    pipe, case = made("sd"), CASES["sd"]

    def change(_: Any, step: int, __: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": given["prompt_embeds"] + 1.0} if step == 4 else {}

    with guided(pipe, APG(5.0, momentum=-0.5), gate=Gate(until=0.0)) as guidance:
        case.run(
            3.0,
            num_inference_steps=STEPS,
            callback_on_step_end=change,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )
    assert guidance.passes_run == STEPS + 2


def test_measured_bounds_count_in_a_pipeline() -> None:
    pipe, case = made("sd"), CASES["sd"]
    counts = []
    for rule in (GatedCFG(5.0, every=100), GatedCFG(5.0, every=100, drift=0.05), GatedCFG(5.0, every=1, stop=100.0)):
        with guided(pipe, Rescale(rule, 0.5)) as guidance:
            case.run(3.0, num_inference_steps=STEPS)
        counts.append(guidance.passes_run)
    assert counts[0] == STEPS + 1 < counts[1] and counts[2] == STEPS + 1


def test_where_nothing_can_be_left_out_it_says_so() -> None:
    with (
        pytest.raises(ValueError, match=r"gate: .*PAGPipeline runs one call on"),
        guided(made("sd_pag"), CFG(5.0), gate=Gate(2)),
    ):
        pass
    with (
        pytest.raises(ValueError, match="gate: expected one for each of"),
        guided(made("wan_two_stages"), CFG(5.0), gate={"transformer": Gate(2)}),
    ):
        pass
    with (
        pytest.raises(ValueError, match="gate: GatedCFG has one of its own"),
        guided(made("sd"), GatedCFG(5.0), gate=Gate(2)),
    ):
        pass
