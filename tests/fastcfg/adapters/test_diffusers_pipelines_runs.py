"""What a guided pipeline leaves behind, how its components pass for themselves, and its errors."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import diffusers
import pytest
import torch
from conformance.tiny_pipelines import CASES, drawn, embeds, made
from torch import nn

from fastcfg import CFG, NormCap, PerpNeg, Perturbed, Rescale
from fastcfg.adapters.diffusers import PipelineForm, guided, own_rule
from fastcfg.adapters.diffusers.pipelines.check import combination_error

# --- Errors, and what is left behind ----------------------------------------------------------------------------------


def traces(pipe: Any) -> list[Any]:
    """Everything of a pipeline that a patch could change."""
    own = [(name, id(value)) for name, value in sorted(vars(pipe).items()) if name in pipe.components]
    parts = [(name, sorted(vars(part))) for name, part in sorted(pipe.components.items()) if hasattr(part, "__dict__")]
    classes = [{name: id(value) for name, value in vars(type(part)).items()} for part in pipe.components.values()]
    hooks = [len(part._forward_hooks) for part in pipe.components.values() if isinstance(part, nn.Module)]
    return [own, parts, classes, hooks, {n: id(v) for n, v in vars(type(pipe)).items()}, dict(pipe.config)]


@pytest.mark.parametrize("name", ["sd", "wan"])
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


def test_components_are_themselves_to_others() -> None:
    pipe, case = made("sd"), CASES["sd"]
    stock = case.run(5.0)
    unet, scheduler, cls = pipe.unet, pipe.scheduler, type(pipe)
    with guided(pipe, CFG(2.0)):
        assert pipe.unet is unet and pipe.scheduler is scheduler and type(scheduler.step).__name__ == "method"
        assert isinstance(pipe, cls) and type(pipe).__name__ == cls.__name__
        others = [
            diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False),
            diffusers.AutoPipelineForText2Image.from_pipe(pipe),
            copy.copy(pipe),
            copy.deepcopy(pipe),
        ]
        assert all(type(other) is cls for other in others)
        assert type(pickle.loads(pickle.dumps(pipe.scheduler))) is type(scheduler)
        for other in others:
            other.set_progress_bar_config(disable=True)
            run = other(**arguments_of(case, 5.0), return_dict=False)[0]
            assert torch.equal(run, stock), "another pipeline of the components is not guided"
        assert not torch.equal(case.run(5.0), stock)
    assert type(pipe) is cls and "step" not in vars(scheduler)


def arguments_of(case: Any, scale: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {"num_inference_steps": 2, case.switch: scale, **case.output, **case.inputs(), "generator": generator}


def test_during_a_call_a_pipeline_asks_and_copies_its_components() -> None:
    pipe, seen = made("sd"), []

    def look(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        copied = copy.deepcopy(pipe.scheduler)
        copied.set_timesteps(3)
        copied.step(drawn(1, 4, 8, 8, seed=0), copied.timesteps[0], drawn(1, 4, 8, 8, seed=1))
        seen.append((type(pipe.scheduler), isinstance(pipe.unet, diffusers.UNet2DConditionModel), pipe.unet.dtype))
        assert "latent" not in inspect.signature(pipe.scheduler.step).parameters
        assert next(iter(inspect.signature(pipe.scheduler.step).parameters)) == "model_output"
        return {}

    with guided(pipe, CFG(5.0)) as guidance:
        CASES["sd"].run(3.0, callback_on_step_end=look)
    assert seen == [(diffusers.EulerDiscreteScheduler, True, torch.float32)] * 2
    assert guidance.step == guidance.num_steps == 2, "a copy's steps are not the run's"


def test_a_step_behind_a_wrapper_and_a_denoiser_compiled_meanwhile() -> None:
    pipe, case = made("sd"), CASES["sd"]
    stock, own, unet = case.run(5.0), pipe.scheduler.step, pipe.unet
    pipe.scheduler.step = lambda *args, **kwargs: own(*args, **kwargs)
    wrapper = pipe.scheduler.step
    try:
        with guided(pipe, CFG(5.0), numerics="eager"):
            assert torch.equal(case.run(3.0), stock)
        assert pipe.scheduler.step is wrapper
        with guided(pipe, CFG(5.0), numerics="eager"):
            pipe.unet = torch.compile(pipe.unet, backend="eager")
            assert torch.equal(case.run(3.0), stock)
    finally:
        del pipe.scheduler.step
        pipe.unet = unet


def test_a_component_replaced_inside_the_block_is_guided_and_stays() -> None:
    pipe, case = made("sd"), CASES["sd"]
    old, new = pipe.scheduler, diffusers.DDIMScheduler()
    with guided(pipe, CFG(5.0), numerics="eager"):
        pipe.scheduler = new
        ours = case.run(3.0)
        with pytest.raises(RuntimeError, match="scheduler was replaced"):
            case.run(3.0, callback_on_step_end=lambda pipe, *_: vars(pipe).update(scheduler=old) or {})
        pipe.scheduler = new
    assert pipe.scheduler is new and torch.equal(ours, case.run(5.0))
    pipe.scheduler = old


def test_one_pass_pipelines_take_a_scale_of_one() -> None:
    case, pipe = CASES["flux"], made("flux")
    form = PipelineForm(("cond",))
    with guided(pipe, CFG(1.0), form=form) as guidance:
        ours = case.run(1.0)
    assert torch.equal(ours, case.run(1.0)) and guidance.passes_run == 2
    with pytest.raises(ValueError, match="takes 'uncond'"), guided(pipe, CFG(2.0), form=form):
        pass


class CFGCutoffLike(diffusers.callbacks.SDCFGCutoffCallback):
    pass


def changes_the_scale(pipe: Any, *_: Any) -> dict[str, Any]:
    pipe._guidance_scale = 1.5
    return {}


LOST = [
    ("sd", {"guidance_rescale": 0.7}, r"guidance_rescale: .*Rescale"),
    ("wan", {"guidance_scale_2": 2.0}, r"guidance_scale_2: .*transformer_2"),
    ("lumina2", {"cfg_trunc_ratio": 0.5}, r"cfg_trunc_ratio: .*Interval"),
    ("lumina2", {"cfg_normalization": False}, r"cfg_normalization: .*NormCap"),
    ("z_image", {"cfg_truncation": 0.5}, r"cfg_truncation: .*Interval"),
    ("z_image", {"cfg_normalization": True}, r"cfg_normalization: .*NormCap"),
    ("sd_pag", {"pag_adaptive_scale": 0.5}, r"pag_adaptive_scale: .*schedule"),
    ("sd3", {"skip_guidance_layers": [0]}, r"skip_guidance_layers: .*Perturbed"),
    ("cogvideox", {"use_dynamic_cfg": True}, r"use_dynamic_cfg: .*Values"),
    ("sd", {"callback_on_step_end": CFGCutoffLike(cutoff_step_ratio=0.5)}, r"callback_on_step_end: .*Interval"),
    ("sd", {"callback_on_step_end": changes_the_scale}, r"callback_on_step_end: .*from 3.0 to 1.5.*Interval"),
]


@pytest.mark.parametrize(("name", "given", "message"), LOST, ids=[f"{n}-{next(iter(g))}" for n, g, _ in LOST])
def test_an_argument_whose_effect_would_be_lost_is_named(name: str, given: dict[str, Any], message: str) -> None:
    rule = Perturbed(5.0, 2.0) if name == "sd_pag" else CFG(5.0)
    with pytest.raises(ValueError, match=message), guided(made(name), rule):
        CASES[name].run(3.0, **given)
    with guided(made(name), rule):  # As they are by default they say nothing.
        CASES[name].run(3.0, callback_on_step_end=None)


def test_own_rule_follows_the_arguments_of_the_pipeline() -> None:
    def own(cls: type, *values: float, **named: float) -> Any:
        return own_rule(object.__new__(cls), *values, **named)

    by_token = NormCap(CFG(5.0), mode="full", over="token")
    assert own(diffusers.Lumina2Pipeline, 5.0) == by_token
    assert own(diffusers.Lumina2Pipeline, 5.0, cfg_normalization=False) == CFG(5.0)
    assert own(diffusers.QwenImageLayeredPipeline, 5.0) == CFG(5.0)
    assert own(diffusers.QwenImageLayeredPipeline, 5.0, cfg_normalize=True) == by_token
    assert own(diffusers.BriaPipeline, 5.0, normalize=True) == CFG(5.0, 0.7)
    assert own(diffusers.StableDiffusionPAGPipeline, 5.0, 2.0, rescale=0.5) == Rescale(Perturbed(5.0, 2.0), 0.5)
    assert own(diffusers.StableDiffusion3Pipeline, 5.0, perturbed_scale=2.8) == Perturbed(5.0, 2.8)
    assert own(diffusers.LongCatImagePipeline, 5.0, enable_cfg_renorm=False) == CFG(5.0)
    assert own(diffusers.StableVideoDiffusionPipeline, 3.0, 3.0) == CFG(3.0)
    with pytest.raises(ValueError, match=r"frame_scales=torch.linspace\(1.0, 3.0"):
        own(diffusers.StableVideoDiffusionPipeline, 3.0)


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
    assert combination_error(guided_by_7, passes) is None
    assert combination_error(guided_by_7.bfloat16(), passes) is None
    assert combination_error(0.3 * guided_by_7, passes) is None
    by_row = guided_by_7 * (1.0 + torch.arange(8.0)).view(8, 1)
    assert combination_error(by_row, passes, -1) is None
    assert "no combination" in str(combination_error(by_row, passes))
    assert "no combination" in str(combination_error(guided_by_7 + other, passes))
    assert "order" in str(combination_error(c + 7.0 * (u - c), passes))
    assert combination_error(torch.full_like(u, torch.nan), passes) is None  # Handed on as it is.


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


def test_a_class_whose_call_ends_in_a_covered_one_is_guided() -> None:
    """As optimum's pipelines are written, for OpenVINO and ONNX Runtime."""

    class Exported:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.auto_model_class.__call__(self, *args, **kwargs)  # type: ignore[attr-defined]

    class ExportedStableDiffusion(Exported, diffusers.StableDiffusionPipeline):
        auto_model_class = diffusers.StableDiffusionPipeline

    case, own = CASES["sd"], made("sd")
    pipe = ExportedStableDiffusion(**own.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    with guided(pipe, CFG(5.0), numerics="eager"):
        ours = pipe(**arguments_of(case, 3.0), return_dict=False)[0]
    assert torch.equal(ours, case.run(5.0))


def test_a_pipeline_that_is_not_covered_says_what_to_do() -> None:
    class Mine(diffusers.StableDiffusionPipeline):
        def __call__(self) -> None:
            pass

    class Inherits(diffusers.StableDiffusionPipeline):
        pass

    for cls, message in (
        (Mine, "Mine overrides the __call__ of StableDiffusionPipeline; give form"),
        (diffusers.HunyuanVideo15Pipeline, "HunyuanVideo15Pipeline .*guider, and it has none"),
        (diffusers.CosmosTextToWorldPipeline, "CosmosTextToWorldPipeline .* denoised samples"),
        (diffusers.DDPMPipeline, "DDPMPipeline .* give form"),
    ):
        with pytest.raises(ValueError, match=message), guided(object.__new__(cls), CFG()):
            pass
    assert own_rule(object.__new__(Inherits), 5.0, 0.5) == CFG(5.0, 0.5)
