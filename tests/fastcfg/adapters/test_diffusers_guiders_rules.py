"""Guiders by any rule: their values are the rule's own, with its passes, memory, parameters and config."""

import copy
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers.guiders")

from conformance.cases import draw, exact
from conformance.guider_twins import at_step
from conformance.oracles import nonlinear
from conformance.oracles.rounding import error_in_ideal_units
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, LayerSkipConfig
from diffusers import guiders as stock
from torch import Tensor, nn

import fastcfg.adapters.diffusers as fused
from fastcfg import (
    APG,
    CFG,
    Autoguidance,
    Clamp,
    DualCFG,
    GatedCFG,
    InDomain,
    InnerGuidance,
    InstructPix2Pix,
    MultiCondition,
    NegativePrompt,
    NormCap,
    PerpNeg,
    Perturbed,
    Rescale,
    Rule,
    State,
    convert,
    guide,
    guide_frames,
    schedules,
)
from fastcfg.prediction import Prediction

SHAPE = (2, 4, 6, 8, 8)
RULES: list[Rule] = [
    CFG(5.0, rescale=0.4),
    NegativePrompt(4.0),
    PerpNeg(5.0, (1.0, 0.5)),
    DualCFG(5.0, 2.0),
    InstructPix2Pix(5.0, 1.5),
    MultiCondition((5.0, 2.0, 1.0)),
    InnerGuidance(3.0, 2.0),
    Perturbed(5.0, 2.0),
    Autoguidance(2.0),
    Clamp(Rescale(PerpNeg(6.0), phi=0.5), k=3.0),
    NormCap(CFG(6.0), cap=1.1),
]
by_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)


def made(rule: Rule, **config: Any) -> fused.RuleGuidance:
    if "perturbed" in rule.conditions:
        config["perturbed"] = LayerSkipConfig(indices=[0])
    return fused.RuleGuidance(rule, **config)


def named(guider: Any, predictions: dict[str, Tensor]) -> dict[str, Tensor]:
    return {guider._names[name]: tensor for name, tensor in predictions.items()}


@by_rule
def test_values_and_passes_are_the_rules_own(rule: Rule, tmp_path: Path) -> None:
    guider = made(rule, start=0.1, stop=0.6)
    predictions = draw(rule.conditions, SHAPE, torch.bfloat16)
    for step in (0, 1, 5, 6, 9):
        given = named(guider, predictions)
        got = at_step(guider, step).forward(**given)
        if 1 <= step < 6:
            assert guider.num_conditions == len(rule.conditions)
            assert torch.equal(got.pred, guide(rule, **predictions))
        else:
            assert guider.num_conditions == 1 and got.pred is given["pred_cond"]
    guider.save_pretrained(tmp_path)
    assert Rule.from_dict(json.loads((tmp_path / "guider_config.json").read_text())["rule"]) == rule
    for other in (fused.RuleGuidance.from_pretrained(tmp_path), guider.new(), copy.deepcopy(guider)):
        assert other.rule == rule
        assert torch.equal(at_step(other, 3).forward(**named(other, predictions)).pred, guide(rule, **predictions))


@by_rule
def test_under_compile_without_a_graph_break(rule: Rule) -> None:
    torch._dynamo.reset()
    guider = made(rule)
    predictions = draw(rule.conditions, (2, 4, 8, 8), torch.float64)
    compiled = torch.compile(lambda given: guider.forward(**given).pred, backend="eager", fullgraph=True)
    at_step(guider, 0)
    torch.testing.assert_close(compiled(named(guider, predictions)), guide(rule, **predictions), rtol=0, atol=2.0**-40)


def test_batches_of_further_conditions() -> None:
    """Places of a tuple in the order main, unguided, others; what is given for a condition lies over the main one's."""
    guider = at_step(fused.RuleGuidance(PerpNeg(5.0, (1.0, 1.0))), 0)
    data = {"a": (0, 1, 2, 3), "b": torch.zeros(1)}
    batches = guider.prepare_inputs({**data, "a": tuple(torch.full((1,), i) for i in data["a"])})
    found = {batch["__guidance_identifier__"]: int(batch["a"]) for batch in batches}
    assert found == {"pred_cond": 0, "pred_uncond": 1, "pred_negative_1": 2, "pred_negative_2": 3}
    guider.inputs = {"negative_1": {"a": "one"}, "negative_2": {"a": "two", "b": "other"}}
    block = type(batches[0])(p="prompt", n="nothing", s="shared")
    batches = guider.prepare_inputs_from_block_state(block, {"a": ("p", "n"), "b": "s"})
    assert [(batch["a"], batch["b"]) for batch in batches] == [
        ("prompt", "shared"), ("nothing", "shared"), ("one", "shared"), ("two", "other"),
    ]  # fmt: skip
    assert [batch["__guidance_identifier__"] for batch in batches] == list(found)
    guider.inputs = {}
    with pytest.raises(ValueError, match=r"inputs: 'negative_1' has no place 2"):
        guider.prepare_inputs_from_block_state(block, {"a": ("p", "n"), "b": "s"})


class Blocks(nn.Module):
    """A model of one block that is skipped by diffusers' hook, and shows with which inputs it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, sample: Tensor) -> Tensor:
        return sample


def test_passes_that_are_not_needed_are_not_run() -> None:
    for rule, passes in (
        (CFG(1.0), ["pred_cond"]),
        (DualCFG(5.0, 0.0), ["pred_cond", "pred_uncond"]),
        (DualCFG(5.0, 4.0), ["pred_cond", "pred_negative"]),
        (InstructPix2Pix(5.0, 5.0), ["pred_cond", "pred_uncond"]),
        (CFG(schedules.Interval(5.0, 0.0, 0.5)), ["pred_cond", "pred_uncond"]),
    ):
        guider = fused.RuleGuidance(rule)
        assert [name for name, _ in at_step(guider, 0)._now().passes] == passes
        p = draw(rule.conditions, (2, 3, 4), torch.float64)
        given = {name: tensor for name, tensor in named(guider, p).items() if name in passes}
        got = guider.forward(**given).pred
        torch.testing.assert_close(got, guide(rule.at(0, 10), **p), rtol=0, atol=2.0**-48)
    assert at_step(guider, 9).num_conditions == 1, "the interval is over"


def test_a_step_is_needed_where_the_rule_changes_over_a_run() -> None:
    guider = fused.ScheduledGuidance(schedules.Ramp(1.0, 5.0))
    p = draw(("cond", "uncond"), (2, 3, 4), torch.float64)
    assert guider.num_conditions == 2
    with pytest.raises(ValueError, match="set_state"):
        guider.forward(*p.values())
    for step in range(5):
        expected = guide(CFG(1.0 + step), **p)
        torch.testing.assert_close(at_step(guider, step, 5).forward(*p.values()).pred, expected, rtol=0, atol=2.0**-48)
    with pytest.raises(TypeError, match="guidance_scale"):
        fused.ScheduledGuidance(3.0)
    with pytest.raises(ValueError, match="sigma"):
        at_step(fused.ScheduledGuidance(schedules.SigmaInterval(5.0, low=0.1, high=0.9)), 0)


def test_memory() -> None:
    rule = GatedCFG(4.0, every=3)
    guider, state = fused.RuleGuidance(rule), State()
    for step in range(6):
        p = draw(("cond", "uncond"), (2, 3, 4, 4), torch.float64, step)
        assert at_step(guider, step).num_conditions == (2 if step % 3 == 0 else 1)
        resolved = rule.at(step, 10)
        expected = guide(resolved, state=state, **{name: p[name] for name in resolved.conditions})
        got = guider.forward(*(list(p.values())[: guider.num_conditions])).pred
        # The pass that is left out is cond less its delta; the rule adds a multiple of the delta.
        torch.testing.assert_close(got, expected, rtol=2.0**-50, atol=2.0**-49)
    at_step(guider, 0)
    assert len(guider.state) == 0


def test_parameters_for_each_sample() -> None:
    rule = PerpNeg(5.0, (1.0,))
    scales = {"scale": [2.0, 4.0], "negative_scale_1": torch.tensor([1.0, 3.0])}
    guider = fused.RuleGuidance(rule, params=scales)
    p = draw(rule.conditions, (2, 3, 4, 4), torch.float64)
    params = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in scales.items()}
    expected = guide(rule, params=params, **p)
    assert torch.equal(at_step(guider, 0).forward(**named(guider, p)).pred, expected)
    again = fused.RuleGuidance.from_config(json.loads(guider.to_json_string()))
    assert torch.equal(at_step(again, 0).forward(**named(again, p)).pred, expected)
    thin = fused.PerpNegGuidance(scales["scale"], [1.0])
    torch.testing.assert_close(
        at_step(thin, 0).forward(**named(thin, p)).pred, guide(rule, params={"scale": params["scale"]}, **p)
    )
    with pytest.raises(ValueError, match="params: PerpNeg has"):
        fused.RuleGuidance(rule, params={"strength": 2.0})


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_scales_for_each_frame(phi: float) -> None:
    scales = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    p = draw(("cond", "uncond"), SHAPE, torch.float64)
    expected = guide_frames(Rescale(CFG(), phi=phi) if phi else CFG(), scales, **p)
    guider = at_step(fused.FrameGuidance(scales, guidance_rescale=phi), 0)
    assert torch.equal(guider.forward(*p.values()).pred, expected)
    rule = Rescale(CFG(), phi=phi) if phi else CFG()
    other = at_step(fused.RuleGuidance(rule, frame_scales=scales), 0)
    assert torch.equal(other.forward(*p.values()).pred, expected)
    moved = {name: tensor.movedim(2, 1) for name, tensor in p.items()}
    swapped = at_step(fused.FrameGuidance(scales, frame_dim=1, guidance_rescale=phi), 0)
    torch.testing.assert_close(swapped.forward(*moved.values()).pred.movedim(1, 2), expected)


def test_eager_numerics_are_diffusers_bits() -> None:
    p = draw(("cond", "uncond"), (2, 4, 8, 8), torch.bfloat16)
    theirs = at_step(stock.ClassifierFreeGuidance(guidance_scale=5.0), 0).forward(*p.values()).pred
    assert torch.equal(at_step(fused.RuleGuidance(CFG(5.0), numerics="eager"), 0).forward(*p.values()).pred, theirs)
    constant = fused.ScheduledGuidance(schedules.Constant(5.0), numerics="eager")
    assert torch.equal(at_step(constant, 0).forward(*p.values()).pred, theirs)


@pytest.mark.parametrize(
    ("scheduler", "level"),
    [
        (FlowMatchEulerDiscreteScheduler(), lambda s: Prediction("flow", 1.0 - float(s.sigmas[2]), float(s.sigmas[2]))),
        (DDIMScheduler(prediction_type="v_prediction"), lambda s: _preserving(s, "v")),
        (EulerDiscreteScheduler(), lambda s: _by_ratio(float(s.sigmas[2]))),
    ],
    ids=["flow", "v", "eps"],
)
def test_rules_on_clean_samples(scheduler: Any, level: Any) -> None:
    """The model's own input and the scheduler's level are what takes predictions to x0 and back."""
    scheduler.set_timesteps(5)
    given = draw(("cond", "uncond", "x"), (2, 3, 8, 8), torch.float64)
    x, p = given.pop("x"), given
    prediction = level(scheduler)
    rule = InDomain(APG(5.0, eta=0.0, norm_threshold=2.0))
    guider, threshold = fused.RuleGuidance(rule), fused.DynamicThresholdingGuidance(5.0, quantile=0.9)
    model = Blocks()
    for g in (guider, threshold):
        g.scheduler = scheduler
        at_step(g, 2, 5)
        for _ in range(g.num_conditions):
            g.prepare_models(model)
            model(x)
            g.cleanup_models(model)
    assert not model._forward_pre_hooks
    # Both round the levels, by another way of working them out; alpha divides, and is no less than 1/8 here.
    expected = guide(rule, x=x, prediction=prediction, **p)
    torch.testing.assert_close(guider.forward(*p.values()).pred, expected, rtol=0, atol=2.0**-42)
    clean = prediction.convert(guide(CFG(5.0), **p), x, "x0").numpy()
    bounded = torch.from_numpy(nonlinear.dynamic_threshold(clean, quantile=0.9))
    expected = convert(bounded, x, "x0", prediction.kind, alpha=prediction.alpha, sigma=prediction.sigma)
    torch.testing.assert_close(threshold.forward(*p.values()).pred, expected, rtol=0, atol=2.0**-36)


def _preserving(scheduler: Any, kind: Any) -> Prediction:
    kept = scheduler.alphas_cumprod[int(scheduler.timesteps[2])].double()
    return Prediction(kind, float(kept.sqrt()), float((1 - kept).sqrt()))


def _by_ratio(sigma: float) -> Prediction:
    return Prediction("eps", (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5)


def test_schedules_on_the_noise_level() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    guider = fused.ScheduledGuidance(schedules.SigmaInterval(5.0, low=0.3, high=0.7))
    guider.scheduler = scheduler
    inside = [at_step(guider, step, 5).num_conditions == 2 for step in range(5)]
    assert inside == [0.3 < float(sigma) <= 0.7 for sigma in scheduler.sigmas[:5]]
    assert any(inside) and not all(inside)


def test_half_precision_is_one_rounding() -> None:
    rule = PerpNeg(7.5, (1.5,))
    guider = fused.PerpNegGuidance(7.5, 1.5)
    p = draw(rule.conditions, (2, 4, 32, 32), torch.bfloat16)
    wide = {name: tensor.double() for name, tensor in p.items()}
    got = at_step(guider, 0).forward(**named(guider, p)).pred
    assert error_in_ideal_units(got, exact({"y": guide(rule, **wide)})["y"]) <= 1.01


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(TypeError, match="rule"):
        fused.RuleGuidance(7.5)
    with pytest.raises(ValueError, match="perturbed"):
        fused.RuleGuidance(Perturbed(5.0, 2.0))
    with pytest.raises(ValueError, match="pred_negative"):
        p = draw(("cond", "uncond"), (2, 3, 4), torch.float64)
        at_step(fused.DualGuidance(5.0, 2.0), 0).forward(*p.values())
    with pytest.raises(ValueError, match="quantile"):
        fused.DynamicThresholdingGuidance(quantile=2.0)


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("fastcfg.adapters.diffusers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers.guiders", None)
    adapter = importlib.import_module("fastcfg.adapters.diffusers")
    for name in ("fuse", "FusedClassifierFreeGuidance", "RuleGuidance"):
        with pytest.raises(ImportError, match=r"diffusers >= 0\.42 .*pip install 'fastcfg-diffusion\[diffusers\]'"):
            getattr(adapter, name)
    assert "StableDiffusionPipeline" in adapter.coverage(), "classic pipelines need no guiders"
    with pytest.raises(AttributeError, match="no attribute 'Fused'"):
        adapter.Fused  # noqa: B018
