"""What a run of a guided pipeline does besides combining: passes, conditions, steps, noise levels, errors, traces."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from conformance.tiny_pipelines import BATCH, CASES, STEPS, drawn, embeds, made
from torch import Tensor, nn

from fastcfg import APG, CFG, DualCFG, InDomain, MultiCondition, NegativePrompt, PerpNeg, Perturbed
from fastcfg.adapters.diffusers import PipelineForm, coverage, guided, own_rule
from fastcfg.adapters.diffusers.pipeline_check import combination_error
from fastcfg.adapters.diffusers.pipeline_inputs import blocks, rows
from fastcfg.adapters.diffusers.pipeline_noise import SchedulerLevels
from fastcfg.schedules import Interval, SigmaInterval

STOCK = {name: CASES[name] for name in ("sd", "wan")}
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


# --- Steps and noise levels -------------------------------------------------------------------------------------------


def test_an_img2img_run_counts_its_own_steps() -> None:
    rule = CFG(Interval(5.0, 0.0, 0.5))
    with guided(made("sd_img2img"), rule) as guidance:
        CASES["sd_img2img"].run(3.0, strength=0.5, num_inference_steps=4)
    assert guidance.num_steps == 2 and guidance.step == 2
    assert (guidance.passes_run, guidance.passes_saved) == (3, 1)


def test_schedules_run_on_the_scheduler_s_noise_levels() -> None:
    pipe = made("sd")
    pipe.scheduler.set_timesteps(STEPS)
    first, second = pipe.scheduler.sigmas[:2].tolist()
    with guided(pipe, CFG(SigmaInterval(5.0, low=second, high=first))) as guidance:
        CASES["sd"].run(3.0)
    assert (guidance.passes_run, guidance.passes_saved) == (3, 1)


SCHEDULERS = {
    "euler": lambda d: d.EulerDiscreteScheduler(),
    "euler_v": lambda d: d.EulerDiscreteScheduler(prediction_type="v_prediction"),
    "ddim": lambda d: d.DDIMScheduler(clip_sample=False),
    "ddim_v": lambda d: d.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "ddim_x0": lambda d: d.DDIMScheduler(clip_sample=False, prediction_type="sample"),
    "ddpm": lambda d: d.DDPMScheduler(clip_sample=False),
    "dpm": lambda d: d.DPMSolverMultistepScheduler(solver_order=1),
    "unipc_flow": lambda d: d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    "flow": lambda d: d.FlowMatchEulerDiscreteScheduler(),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_the_model_predicts_is_what_the_scheduler_takes_it_for(name: str) -> None:
    scheduler = SCHEDULERS[name](diffusers)
    scheduler.set_timesteps(4)
    output, sample = drawn(1, 4, 8, 8, seed=0), drawn(1, 4, 8, 8, seed=1)
    for step, t in enumerate(scheduler.timesteps[:2]):
        levels = SchedulerLevels(scheduler, step, 4)
        x = levels.model_sample(sample, t)
        x0 = levels.prediction().convert(output, x, "x0")
        torch.testing.assert_close(x0, clean_sample(scheduler, output, t, sample), rtol=2e-4, atol=2e-4)
        sample = scheduler.step(output, t, sample).prev_sample


def clean_sample(scheduler: Any, output: Tensor, t: Tensor, sample: Tensor) -> Tensor:
    """The clean sample as the scheduler itself makes it."""
    if hasattr(scheduler, "convert_model_output"):
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        return scheduler.convert_model_output(output, sample=sample)
    if scheduler.__class__.__name__.startswith("FlowMatch"):
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        return sample - scheduler.sigmas[scheduler.step_index] * output
    return copy.deepcopy(scheduler).step(output, t, sample).pred_original_sample


@pytest.mark.parametrize("name", ["sd", "sd_ddim", "sd3", "wan"])
def test_rules_with_a_domain_get_the_noise_level(name: str) -> None:
    case, pipe = CASES[name], made(name)
    with guided(pipe, InDomain(APG(5.0, 0.0), "x0")):
        in_x0 = case.run(3.0)
    with guided(pipe, APG(5.0, 0.0)):
        in_own = case.run(3.0)
    assert in_x0.isfinite().all() and not torch.equal(in_x0, in_own)
    # Without a norm the domain makes no difference.
    with guided(pipe, InDomain(APG(5.0), "x0")):
        plain = case.run(3.0)
    with guided(pipe, CFG(5.0)):
        torch.testing.assert_close(plain, case.run(3.0), rtol=1e-3, atol=1e-3 * float(plain.std()))


# --- Errors, and what is left behind ----------------------------------------------------------------------------------


def traces(pipe: Any) -> list[Any]:
    """Everything of a pipeline that a patch could change."""
    own = [(name, id(value)) for name, value in sorted(vars(pipe).items()) if name in pipe.components]
    parts = [(name, sorted(vars(part))) for name, part in sorted(pipe.components.items()) if hasattr(part, "__dict__")]
    classes = [{name: id(value) for name, value in vars(type(part)).items()} for part in pipe.components.values()]
    hooks = [len(part._forward_hooks) for part in pipe.components.values() if isinstance(part, nn.Module)]
    return [own, parts, classes, hooks, {n: id(v) for n, v in vars(type(pipe)).items()}, dict(pipe.config)]


@pytest.mark.parametrize("name", STOCK)
def test_nothing_is_left_behind(name: str) -> None:
    case, pipe = CASES[name], made(name)
    stock = case.run(5.0)
    before = traces(pipe)
    with guided(pipe, CFG(2.0)):
        case.run(3.0)
    assert traces(pipe) == before and torch.equal(case.run(5.0), stock)

    def fail(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), guided(pipe, CFG(2.0)):
        case.run(3.0, callback_on_step_end=fail)
    with pytest.raises(ValueError, match="guidance on"), guided(pipe, CFG(2.0)):
        case.run(1.0)
    assert traces(pipe) == before and torch.equal(case.run(5.0), stock)


def test_stand_ins_pass_for_the_components() -> None:
    pipe = made("sd")
    unet, scheduler = pipe.unet, pipe.scheduler
    with guided(pipe, CFG(5.0)):
        assert isinstance(pipe.unet, diffusers.UNet2DConditionModel) and pipe.unet.config is unet.config
        assert isinstance(pipe.scheduler, diffusers.EulerDiscreteScheduler) and pipe.unet.dtype == torch.float32
        assert inspect.signature(pipe.scheduler.step) == inspect.signature(scheduler.step)
        assert (
            type(copy.deepcopy(pipe.scheduler)) is type(pickle.loads(pickle.dumps(pipe.scheduler))) is type(scheduler)
        )
        pipe.unet.marked = 1
        del unet.marked  # What is set on a stand-in is set on what it stands for.
        kept = pipe.unet
        other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    assert type(pipe.unet) is diffusers.UNet2DConditionModel
    other.set_progress_bar_config(disable=True)
    t = torch.tensor(1)
    assert torch.equal(
        kept(drawn(1, 4, 8, 8, seed=0), t, embeds(1)[:1])[0], unet(drawn(1, 4, 8, 8, seed=0), t, embeds(1)[:1])[0]
    ), "a stand-in kept beyond the block is what it stood for"


def test_a_component_replaced_inside_the_block_stays() -> None:
    pipe = made("sd")
    old, new = pipe.scheduler, diffusers.DDIMScheduler()
    with pytest.raises(RuntimeError, match="scheduler was replaced"), guided(pipe, CFG(5.0)):
        pipe.scheduler = new
        CASES["sd"].run(3.0)
    assert pipe.scheduler is new
    pipe.scheduler = old


def test_guided_twice_is_an_error() -> None:
    pipe = made("sd")
    guidance = guided(pipe, CFG(5.0))
    with guidance, pytest.raises(RuntimeError, match="guided already"), guided(pipe, CFG(2.0)):
        pass
    with guided(pipe, CFG(5.0)), guided(made("sd_ddim"), CFG(2.0)):
        pass


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("sd", PipelineForm(("cond", "uncond"), denoisers=("unet",)), "not in this order"),
        ("sd", PipelineForm(denoisers=("unet",), sign=-1), "not in this order"),
        ("sd", PipelineForm(("cond", "uncond"), False, ("unet",)), "samples|hold"),
        ("wan", PipelineForm(("uncond", "cond"), False), "not in this order"),
    ],
    ids=["order", "sign", "in_turn", "order_in_turn"],
)
def test_a_form_that_is_not_the_pipeline_s_is_an_error(name: str, form: PipelineForm, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message), guided(made(name), CFG(5.0), form=form):
        CASES[name].run(3.0)


def test_what_is_no_combination_of_the_passes_is_seen() -> None:
    u, c, other = drawn(3, 2, 4, 8, 8, seed=0).unbind(0)
    passes = {"uncond": u, "cond": c}
    guided_by_7 = u + 7.0 * (c - u)
    assert combination_error(guided_by_7, passes, False) is None
    assert combination_error(guided_by_7.bfloat16(), passes, False) is None
    assert combination_error(0.3 * guided_by_7, passes, False) is None
    by_row = guided_by_7 * (1.0 + torch.arange(8.0)).view(8, 1)
    assert combination_error(by_row, passes, True) is None
    assert "no combination" in str(combination_error(by_row, passes, False))
    assert "no combination" in str(combination_error(guided_by_7 + other, passes, False))
    assert "order" in str(combination_error(c + 7.0 * (u - c), passes, False))
    assert combination_error(torch.full_like(u, torch.nan), passes, False) is None  # Handed on as it is.


def test_errors_name_the_argument() -> None:
    pipe = made("sd")
    negative = {"negative": {"encoder_hidden_states": embeds(3)}}
    for arguments, message in (
        ({"rule": 7.5}, "rule: expected a fastcfg rule"),
        ({"rule": {"transformer": CFG()}}, "rule: expected one for each of"),
        ({"rule": PerpNeg()}, "conditions: PerpNeg takes 'negative'"),
        ({"rule": CFG(), "conditions": negative}, "conditions: negative: no prediction"),
        ({"rule": CFG(), "numerics": "fp64"}, "numerics"),
    ):
        with pytest.raises((TypeError, ValueError), match=message), guided(pipe, **arguments):
            pass
    with (
        pytest.raises(ValueError, match=r"takes no \['embeds'\]"),
        guided(pipe, PerpNeg(), conditions={"negative": {"embeds": embeds(3)}}),
    ):
        CASES["sd"].run(3.0)


def test_a_pipeline_that_is_not_covered_says_what_to_do() -> None:
    class Mine(diffusers.StableDiffusionPipeline):
        def __call__(self) -> None:
            pass

    class Inherits(diffusers.StableDiffusionPipeline):
        pass

    for cls, message in (
        (Mine, "Mine overrides the __call__ of StableDiffusionPipeline; give form"),
        (diffusers.HunyuanVideo15Pipeline, "HunyuanVideo15Pipeline .*fuse"),
        (diffusers.CosmosTextToWorldPipeline, "CosmosTextToWorldPipeline .* denoised samples"),
        (diffusers.DDPMPipeline, "DDPMPipeline .* give form"),
    ):
        with pytest.raises(ValueError, match=message), guided(object.__new__(cls), CFG()):
            pass
    assert own_rule(object.__new__(Inherits), 5.0, 0.5) == CFG(5.0, 0.5)
