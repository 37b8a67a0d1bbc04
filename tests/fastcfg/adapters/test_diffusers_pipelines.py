"""diffusers' own pipelines under our rules, beside themselves as they are: guidance calls and final latents."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conformance.cases import BY_NAME, Case, exact
from conformance.field_cases import BY_FIELD_NAME
from conformance.oracles.rounding import ulp
from conformance.tiny_pipelines import CASES, STEPS, TinyPipeline, made
from conformance.tolerances import check_error
from torch import Tensor

from fastcfg import APG, CFG, TCFG, InstructPix2Pix, PerpNeg, Rule
from fastcfg.adapters.diffusers import guided, own_rule
from fastcfg.adapters.diffusers.pipelines import guidance as pipeline_guidance

Recorded = list[tuple[dict[str, Tensor], Tensor]]

ELEMENTWISE = [name for name in CASES if name not in ("qwen", "lumina2", "sd_pag", "ip2p", "z_image", "svd", "cascade")]
WITH_SUMS = [
    ("sd", "CFG(rescale)", {"guidance_rescale": 0.7}),
    ("sdxl", "CFG(rescale)", {"guidance_rescale": 0.7}),
    ("ltx", "CFG(rescale)", {"guidance_rescale": 0.7}),
    ("qwen", "CFG+full_token", {}),
    ("lumina2", "CFG+full_token", {}),
    ("sd_pag", "Perturbed", {"pag_scale": 2.8}),
]


def case_of(name: str) -> Case:
    return BY_NAME[name] if name in BY_NAME else BY_FIELD_NAME[name]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Predictions and result of each guidance call."""
    calls: Recorded = []
    real = pipeline_guidance.guide

    def guide(rule: Rule, **arguments: Any) -> Tensor:
        result = real(rule, **arguments)
        predictions = {name: arguments[name].clone() for name in rule.conditions}
        calls.append((predictions, result.clone()))
        return result

    monkeypatch.setattr(pipeline_guidance, "guide", guide)
    return calls


@contextmanager
def outputs_moved(pipe: Any, ulps: int) -> Iterator[None]:
    """The pipeline with every guided prediction moved away from zero by so many spacings of its dtype."""
    step = pipe.scheduler.step

    @functools.wraps(step)
    def moved(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        spacing = torch.from_numpy(ulp(model_output.double().numpy(), model_output.dtype)).to(model_output.dtype)
        return step(model_output + ulps * spacing * model_output.sign(), *args, **kwargs)

    pipe.scheduler.step = moved
    try:
        yield
    finally:
        del pipe.scheduler.step


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_plain_cfg_has_the_bits_of_the_pipeline(name: str) -> None:
    case = CASES[name]
    stock = case.run(5.0)
    with guided(made(name), own_rule(made(name), 5.0), numerics="eager") as guidance:
        ours = case.run(3.0)  # Its own scale only turns the passes on.
    assert torch.equal(ours, stock)
    assert (guidance.step, guidance.num_steps, guidance.passes_run, guidance.passes_saved) == (STEPS, STEPS, 4, 0)


def test_three_passes_have_the_bits_of_the_pipeline() -> None:
    case, pipe = CASES["ip2p"], made("ip2p")
    stock = case.run(5.0, image_guidance_scale=2.0)
    with guided(pipe, own_rule(pipe, 5.0, 2.0), numerics="eager") as guidance:
        assert torch.equal(case.run(3.0), stock)
    assert guidance.passes_run == 3 * STEPS
    assert own_rule(pipe, 5.0, 2.0) == InstructPix2Pix(5.0, 2.0)


def test_a_list_of_samples_has_the_bits_of_the_pipeline() -> None:
    case = CASES["z_image"]
    stock = case.run(5.0)
    with guided(made("z_image"), own_rule(made("z_image"), 5.0), numerics="eager"):
        assert torch.equal(case.run(3.0), stock)


def test_cfg_as_one_lerp_has_the_bits_of_the_pipeline() -> None:
    case = CASES["cascade"]
    stock = case.run(5.0)
    with guided(made("cascade"), CFG(5.0)):
        assert torch.equal(case.run(3.0), stock)


def test_two_stages_take_a_rule_each() -> None:
    case, pipe = CASES["wan_two_stages"], made("wan_two_stages")
    stock = case.run(5.0, guidance_scale_2=2.0)
    assert not torch.equal(stock, case.run(5.0))
    with guided(pipe, {"transformer": CFG(5.0), "transformer_2": CFG(2.0)}, numerics="eager"):
        assert torch.equal(case.run(3.0), stock)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "wan", "ltx"])
def test_cfg_is_within_the_bound_and_its_latents_beside_a_control(name: str, recorded: Recorded) -> None:
    assert_beside_stock(CASES[name], case_of("CFG"), {}, recorded)


@pytest.mark.parametrize(("name", "rule", "own"), WITH_SUMS, ids=lambda v: v if isinstance(v, str) else "")
def test_sums_are_within_the_bound_and_the_latents_beside_a_control(
    name: str, rule: str, own: dict[str, float], recorded: Recorded
) -> None:
    assert_beside_stock(CASES[name], case_of(rule), own, recorded)


def test_stable_video_diffusion_with_a_scale_for_each_frame() -> None:
    case, pipe = CASES["svd"], made("svd")
    stock = case.run(3.0)
    with outputs_moved(pipe, 1):
        control = case.run(3.0)
    with guided(pipe, CFG(), frame_scales=[1.0, 2.0, 3.0], frame_dim=1):
        ours = case.run(5.0)
    assert_no_further(ours, stock, control)
    stock = case.run(3.0, min_guidance_scale=3.0)
    with guided(pipe, CFG(3.0), numerics="eager"):
        assert torch.equal(case.run(5.0), stock)


def test_z_image_with_its_norm_cap(recorded: Recorded) -> None:
    case, pipe = CASES["z_image"], made("z_image")
    stock = case.run(5.0, cfg_normalization=True)
    with outputs_moved(pipe, 1):
        control = case.run(5.0, cfg_normalization=True)
    with guided(pipe, own_rule(pipe, 5.0, 1.0)):
        ours = case.run(3.0)
    assert len(recorded) == STEPS
    assert_no_further(ours, stock, control)


def assert_beside_stock(case: TinyPipeline, rule: Case, own: dict[str, float], recorded: Recorded) -> None:
    pipe = made(case.name)
    stock = case.run(7.5, **own)
    with outputs_moved(pipe, 1):
        control = case.run(7.5, **own)
    with guided(pipe, rule.rule):
        ours = case.run(3.0, **{name: 0.5 * value for name, value in own.items() if name == "pag_scale"})
    assert len(recorded) == STEPS
    for predictions, result in recorded:
        check_error(rule, result, exact(predictions))
    assert_no_further(ours, stock, control)


def assert_no_further(ours: Tensor, stock: Tensor, control: Tensor) -> None:
    """Ours is off the stock latents by about the roundings of the stock's own operations.

    They are from three (CFG) to thirteen (with a rescale or a norm), each of up to half a spacing, so that they are
    together of about one: sqrt(13 / 12) in root mean square. Twice that leaves room for their growth on the way.
    """
    error, by_one_ulp = (ours - stock).norm(), (control - stock).norm()
    assert error <= 2 * by_one_ulp
    assert by_one_ulp > 0


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "wan"])
@pytest.mark.parametrize(
    ("rule", "checked"),
    [
        (PerpNeg(7.5, (1.5,)), "PerpNeg_1"),
        (APG(7.5, 0.25, 2.0), "APG_norm"),
        (APG(7.5, 0.25, 2.0, -0.5), None),
        (TCFG(7.5), "TCFG"),
    ],
    ids=["PerpNeg", "APG", "APG-momentum", "TCFG"],
)
def test_rules_that_the_pipelines_lack(name: str, rule: Rule, checked: str | None, recorded: Recorded) -> None:
    case = CASES[name]
    conditions = {"negative": case.negative()} if "negative" in rule.conditions else None
    with guided(made(name), rule, conditions=conditions) as guidance:
        first, state = case.run(3.0), guidance.state
        again = case.run(3.0)
    assert torch.equal(first, again), "a run begins with a state of its own"
    assert first.isfinite().all() and not torch.equal(first, case.run(7.5))
    assert guidance.passes_run == 2 * STEPS * len(rule.conditions)
    assert ("average" in state) == (rule == APG(7.5, 0.25, 2.0, -0.5))
    for predictions, result in recorded:
        if checked is not None:
            check_error(case_of(checked), result, exact(predictions))
