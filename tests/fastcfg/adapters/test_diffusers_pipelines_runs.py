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

from fastcfg import CFG, PerpNeg
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
