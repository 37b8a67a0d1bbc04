"""Which passes a guided pipeline runs, and conditions that it does not run by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from conformance.tiny_models import drawn
from conformance.tiny_pipelines import BATCH, CASES, STEPS, embeds, made
from torch import nn

from fastcfg import CFG, DualCFG, MultiCondition, NegativePrompt, Perturbed
from fastcfg.adapters.diffusers import coverage, guided, own_rule
from fastcfg.adapters.diffusers.pipelines.handover import Handover
from fastcfg.adapters.diffusers.pipelines.inputs import blocks, rows
from fastcfg.schedules import Interval

FIRST_STEP_ONLY = Interval(5.0, 0.0, 0.5)


@contextmanager
def counted(denoiser: nn.Module) -> Iterator[list[int]]:
    """Samples of each call of a denoiser."""
    samples: list[int] = []

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        samples.append(rows({**dict(enumerate(args)), **kwargs}))

    handle = denoiser.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield samples
    finally:
        handle.remove()


# --- Passes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("sd", [2 * BATCH, BATCH]),
        ("sdxl", [2 * BATCH, BATCH]),
        ("sd_controlnet", [2 * BATCH, BATCH]),
        ("sd3", [2 * BATCH, BATCH]),
        ("z_image", [2 * BATCH, BATCH]),
        ("dit", [2 * BATCH, BATCH]),
        ("ltx", [2 * BATCH, BATCH]),
        ("ip2p", [3 * BATCH, BATCH]),
        ("wan", [BATCH, BATCH, BATCH]),
        ("flux", [BATCH, BATCH, BATCH]),
        ("sd_pag", [3 * BATCH, 3 * BATCH]),  # Its attention processors take the batch apart themselves.
    ],
)
def test_passes_that_a_step_does_not_need_are_not_run(name: str, samples: list[int]) -> None:
    case, pipe = CASES[name], made(name)
    rule = {"ip2p": own_rule, "sd_pag": own_rule}.get(name, lambda pipe, s, *_: CFG(s))(pipe, FIRST_STEP_ONLY, 1.0)
    if name == "ip2p":
        rule = type(rule)(FIRST_STEP_ONLY, Interval(1.5, 0.0, 0.5))
    denoiser = vars(pipe)[coverage()[type(pipe).__name__].denoisers[0]]
    with counted(denoiser) as run, guided(pipe, rule) as guidance:
        ours = case.run(3.0)
    assert run == samples
    assert guidance.passes_run * BATCH == sum(samples)
    assert ours.isfinite().all()


@pytest.mark.parametrize("name", ["sd", "sd_controlnet", "sdxl", "wan"])
def test_a_step_without_guidance_is_the_conditional_pass(name: str) -> None:
    # The unguided run of the pipeline itself, a pass of B samples a step: ours has the same calls, and so its bits.
    case = CASES[name]
    stock = case.run(1.0)
    with guided(made(name), CFG(1.0)) as guidance:
        ours = case.run(3.0)
    assert guidance.passes_run == STEPS and guidance.passes_saved == STEPS
    if name == "wan":
        assert torch.equal(ours, stock)
    else:
        torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4 * float(stock.std()))


def test_the_pipeline_combines_a_sliver_once_it_has_been_checked() -> None:
    handover, output, made_of_it = Handover(), drawn(4, 3, 5, seed=0), drawn(2, 3, 5, seed=0)
    assert handover.hand_on((output,), output)[0] is output and handover.whole(made_of_it) is made_of_it
    handover.check_passed(output, made_of_it)
    (sliver,) = handover.hand_on((output,), output)
    assert torch.equal(sliver, output[..., :1]) and handover.checked
    assert handover.whole(made_of_it[..., :1]).shape == made_of_it.shape
    longer = drawn(4, 3, 6, seed=0)
    assert handover.hand_on((longer,), longer)[0] is longer and not handover.checked


@pytest.mark.parametrize("name", CASES)
def test_what_the_pipeline_makes_of_its_passes_is_not_used(name: str) -> None:
    case, pipe = CASES[name], made(name)
    with guided(pipe, CFG(5.0), check=False):
        whole = case.run(3.0)
    with guided(pipe, CFG(5.0)):
        assert torch.equal(case.run(3.0), whole)


def test_inputs_that_may_not_be_by_sample_are_not_taken_apart() -> None:
    for argument in ({"something": torch.zeros(2, 4)}, {"encoder_hidden_states": torch.zeros(3, 4)}):
        with pytest.raises(ValueError, match=f"{next(iter(argument))}: which samples"):
            blocks({"hidden_states": torch.zeros(4, 3), **argument}, [1], 2)
    kept = blocks(
        {
            "sample": torch.arange(4.0).view(4, 1),
            "timestep": torch.tensor(3),
            "encoder_hidden_states": torch.arange(8),  # Two frames of each sample.
            "image_rotary_emb": torch.zeros(4, 2),
            "added_cond_kwargs": {"time_ids": torch.arange(4).view(4, 1)},
            "down_block_additional_residuals": (torch.arange(4).view(4, 1),),
            "cap_feats": [torch.tensor([k]) for k in range(4)],
        },
        [1],
        2,
    )
    assert kept["sample"].flatten().tolist() == [2, 3] and kept["timestep"] == 3
    assert kept["encoder_hidden_states"].tolist() == [4, 5, 6, 7] and len(kept["image_rotary_emb"]) == 4
    assert kept["added_cond_kwargs"]["time_ids"].flatten().tolist() == [2, 3]
    assert kept["down_block_additional_residuals"][0].flatten().tolist() == [2, 3]
    assert [int(c) for c in kept["cap_feats"]] == [2, 3]


# --- Conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd_controlnet", "sd3", "pixart", "flux", "wan", "z_image"])
def test_a_further_condition_is_the_denoiser_under_it(name: str) -> None:
    # Twice the same condition with scales 2 and 3 is CFG at 5, but for the roundings of another batch size.
    case, pipe = CASES[name], made(name)
    given = {key: case.inputs()[arg] for key, arg in SAME[name].items()}
    condition = given if name != "sdxl" else {**given, "added_cond_kwargs": {"text_embeds": POOLED["sdxl"]()}}
    with guided(pipe, CFG(5.0)):
        plain = case.run(3.0)
    with guided(pipe, MultiCondition((2.0, 3.0)), conditions={"cond_2": condition}) as guidance:
        ours = case.run(3.0)
    assert guidance.passes_run == 3 * STEPS
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4 * float(plain.std()))


SAME = {name: {"encoder_hidden_states": "prompt_embeds"} for name in ("sd", "sdxl", "sd_controlnet", "pixart", "wan")}
SAME |= {name: {**SAME["sd"], "pooled_projections": "pooled_prompt_embeds"} for name in ("sd3", "flux")}
SAME["z_image"] = {"cap_feats": "prompt_embeds"}
POOLED = {"sdxl": lambda: CASES["sdxl"].inputs()["pooled_prompt_embeds"]}


def test_the_pipeline_s_negative_prompt_is_what_a_rule_calls_negative() -> None:
    case, pipe = CASES["sd"], made("sd")
    stock = case.run(5.0)
    with guided(pipe, NegativePrompt(5.0), numerics="eager"):
        assert torch.equal(case.run(3.0), stock)


def test_a_condition_of_one_prompt_serves_all_its_images() -> None:
    pipe, rule = made("sd"), DualCFG(5.0, 1.0)
    several = {"prompt_embeds": embeds(1), "negative_prompt_embeds": embeds(2), "num_images_per_prompt": 2}
    repeated = {"encoder_hidden_states": embeds(3).repeat_interleave(2, 0)}
    with guided(pipe, rule, conditions={"negative": {"encoder_hidden_states": embeds(3)}}):
        ours = CASES["sd"].run(3.0, **several)
    with guided(pipe, rule, conditions={"negative": repeated}):
        assert torch.equal(CASES["sd"].run(3.0, **several), ours)


def test_a_pipeline_of_one_pass_takes_the_others_as_conditions() -> None:
    # Without a true CFG scale Flux runs its conditional pass alone.
    case, pipe = CASES["flux"], made("flux")
    inputs = case.inputs()
    uncond = {
        "encoder_hidden_states": inputs["negative_prompt_embeds"],
        "pooled_projections": inputs["negative_pooled_prompt_embeds"],
    }
    stock = case.run(5.0)
    with guided(pipe, CFG(5.0), numerics="eager", conditions={"uncond": uncond}):
        assert torch.equal(case.run(1.0), stock)


def test_skip_layer_pass_of_sd3_is_called_perturbed() -> None:
    case, pipe = CASES["sd3"], made("sd3")
    own = {"skip_guidance_layers": [0], "skip_layer_guidance_start": -0.1, "skip_layer_guidance_stop": 1.1}
    stock = case.run(5.0, skip_layer_guidance_scale=2.0, **own)
    with guided(pipe, Perturbed(5.0, 2.0)) as guidance:
        ours = case.run(3.0, **own)
    assert guidance.passes_run == 3 * STEPS
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5 * float(stock.std()))
    # The same, the skip pass being the caller's.
    with guided(pipe, Perturbed(5.0, 2.0), conditions={"perturbed": {"skip_layers": [0]}}):
        torch.testing.assert_close(case.run(3.0), ours, rtol=1e-4, atol=1e-5 * float(stock.std()))


def test_a_compiled_denoiser_and_a_cache_between_steps_work_as_without() -> None:
    case, pipe = CASES["wan"], made("wan")
    conditions = {"negative": case.negative()}
    with guided(pipe, DualCFG(5.0, 1.0), conditions=conditions):
        plain = case.run(3.0)
    transformer = pipe.transformer
    pipe.transformer = torch.compile(transformer, backend="eager")
    try:
        with guided(pipe, DualCFG(5.0, 1.0), conditions=conditions):
            assert torch.equal(case.run(3.0), plain)
    finally:
        pipe.transformer = transformer
    # A threshold that no residual is under: the cache keeps a state for each pass and gives none back.
    transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.0))
    try:
        with guided(pipe, DualCFG(5.0, 1.0), conditions=conditions):
            assert torch.equal(case.run(3.0), plain)
    finally:
        transformer.disable_cache()
