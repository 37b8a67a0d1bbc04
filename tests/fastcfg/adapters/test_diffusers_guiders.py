"""Every fused guider against diffusers' own, which it replaces: values, windows, memory, config, compilation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers.guiders")

from conformance.cases import draw, exact
from conformance.guider_twins import FDG_CONFIGS, KORNIA, TWINS, Twin, at_step, config_of, forward
from conformance.oracles.rounding import error_in_ideal_units
from conformance.tolerances import check_error
from diffusers import guiders as stock
from diffusers.guiders.guider_utils import GuiderOutput
from torch._dynamo.testing import CompileCounter

import fastcfg.adapters.diffusers as fused
from fastcfg import schedules

by_twin = pytest.mark.parametrize("twin", TWINS, ids=str)
needs_kornia = pytest.mark.skipif(not KORNIA, reason="diffusers' FDG needs kornia")
CLASSES = list({twin.name: twin for twin in TWINS}.values())
by_class = pytest.mark.parametrize("twin", CLASSES, ids=lambda twin: twin.name)
EAGER = [
    t for t in TWINS if "numerics" in t.ours.__init__.__signature__.parameters and "guidance_rescale" not in t.config
]
HALVES = [torch.bfloat16, torch.float16]
STEP, STEPS = 3, 10


def agree(ours: torch.Tensor, theirs: torch.Tensor, single: bool = False) -> None:
    """Equal up to sums of 2^11 products at the unit roundoff, times scales and factors below 2^4."""
    unit = 2.0**-24 if single else 2.0**-53
    magnitude = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2.0**15 * unit * magnitude)


@by_twin
def test_equal_to_its_twin_in_float64(twin: Twin) -> None:
    predictions = draw(twin.case, twin.shape, torch.float64)
    theirs, ours = (forward(at_step(g, STEP), twin, predictions) for g in twin.pair())
    agree(ours.pred, theirs.pred, twin.single)
    assert isinstance(ours, GuiderOutput) and ours[0] is ours.pred
    assert ours.pred_cond is predictions["cond"]
    assert ours.pred_uncond is predictions.get("uncond", predictions.get("perturbed"))


@by_twin
def test_within_the_derived_bound_in_float32(twin: Twin) -> None:
    predictions = draw(twin.case, twin.shape, torch.float32)
    ours = at_step(twin.pair()[1], STEP)
    check_error(twin.case, forward(ours, twin, predictions).pred, exact(predictions))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@by_twin
def test_as_near_to_exact_as_its_twin_or_nearer_in_half_precision(twin: Twin, dtype: torch.dtype) -> None:
    predictions = draw(twin.case, twin.shape, dtype)
    theirs, ours = (forward(at_step(g, STEP), twin, predictions).pred for g in twin.pair())
    expected = twin.case.oracle(exact(predictions))
    own = error_in_ideal_units(ours, expected)
    # Root mean squares of n roundings, whose own relative spread is 1/sqrt(2n); four of them.
    assert own <= 1.01 and own <= (1 + 4 / (2 * ours.numel()) ** 0.5) * error_in_ideal_units(theirs, expected)
    assert ours.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("twin", EAGER, ids=str)
def test_eager_numerics_are_diffusers_bits(twin: Twin, dtype: torch.dtype) -> None:
    predictions = draw(twin.case, twin.shape, dtype)
    theirs, ours = twin.theirs(**twin.config), twin.ours(**twin.config, numerics="eager")
    for step in range(STEPS):
        results = [forward(at_step(g, step), twin, predictions).pred for g in (theirs, ours)]
        assert torch.equal(*results)
    assert ours.new().config["numerics"] == "eager"


@needs_kornia
@pytest.mark.parametrize("config", FDG_CONFIGS, ids=str)
def test_frequency_decoupled_is_equal_to_its_twin(config: dict[str, Any]) -> None:
    predictions = draw(("uncond", "cond"), (2, 3, 32, 64), torch.float64)
    given = {f"pred_{name}": tensor for name, tensor in predictions.items()}
    theirs = at_step(stock.FrequencyDecoupledGuidance(**config), STEP).forward(**given).pred
    ours = at_step(fused.FusedFrequencyDecoupledGuidance(**config), STEP)
    agree(ours.forward(**given).pred, theirs)
    again = fused.FusedFrequencyDecoupledGuidance.from_config(stock.FrequencyDecoupledGuidance(**config).config)
    assert json.loads(again.to_json_string()) == json.loads(ours.to_json_string())
    assert torch.equal(at_step(again, STEP).forward(**given).pred, ours.forward(**given).pred)


@by_class
@pytest.mark.parametrize("window", [(0.0, 1.0), (0.25, 0.77), (0.5, 1.0), (0.3, 0.3)], ids=str)
def test_windows(twin: Twin, window: tuple[float, float]) -> None:
    predictions = draw(twin.case, twin.shape, torch.float64)
    theirs, ours = twin.pair(start=window[0], stop=window[1])
    for step in range(STEPS):
        results = [forward(at_step(g, step), twin, predictions).pred for g in (theirs, ours)]
        assert ours.num_conditions == theirs.num_conditions, step
        agree(results[1], results[0], twin.single)
        if ours.num_conditions == 1:
            assert results[1] is predictions["cond"]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("window", [(0.0, 1.0), (0.2, 0.55)], ids=str)
@pytest.mark.parametrize("twin", [t for t in CLASSES if "perturbed" in t.names and len(t.names) == 3], ids=str)
def test_windows_of_the_perturbed_pass(twin: Twin, window: tuple[float, float], scale: float) -> None:
    prefix = next(key for key in twin.config if key.endswith("_start")).removesuffix("_start")
    changed = {f"{prefix}_start": window[0], f"{prefix}_stop": window[1], "guidance_scale": scale, "stop": 0.8}
    pair = (twin.theirs, twin.ours)
    theirs, ours = (cls(**{**twin.config, **changed}) for cls in pair)
    predictions = draw(twin.case, twin.shape, torch.float64)
    for step in range(STEPS):
        results = [forward(at_step(g, step), twin, predictions).pred for g in (theirs, ours)]
        assert ours.num_conditions == theirs.num_conditions, step
        agree(results[1], results[0])


@pytest.mark.parametrize("enabled", [1, 2, 4, 7])
def test_ltx2_runs_the_passes_that_count(enabled: int) -> None:
    twin = next(t for t in TWINS if t.name == "LTX2Guidance")
    neutral = {"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0}
    config = {k: v if enabled >> i & 1 else neutral[k] for i, (k, v) in enumerate(twin.config.items())}
    for numerics in ("fp32", "eager"):
        theirs, ours = at_step(twin.theirs(**config), STEP), at_step(twin.ours(**config, numerics=numerics), STEP)
        assert ours.active_predictions() == theirs.active_predictions()
        assert ours.num_conditions == theirs.num_conditions
        given = {
            n: p
            for n, p in draw(twin.case, twin.shape, torch.float64).items()
            if twin.names[n] in ours.active_predictions()
        }
        agree(forward(ours, twin, given).pred, forward(theirs, twin, given).pred)


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("AdaptiveProjectedGuidance", {"adaptive_projected_guidance_momentum": -0.5, "eta": 0.0}),
        ("AdaptiveProjectedGuidance", {"adaptive_projected_guidance_momentum": 0.75, "guidance_rescale": 0.6}),
        ("AdaptiveProjectedMixGuidance", {"adaptive_projected_guidance_start_step": 2}),
        ("AdaptiveProjectedMixGuidance", {"adaptive_projected_guidance_start_step": 1, "guidance_rescale": 0.4}),
        ("AdaptiveProjectedMixGuidance", {"adaptive_projected_guidance_scale": 1.0, "start": 0.2, "stop": 0.8}),
    ],
    ids=str,
)
def test_momentum_across_steps_and_runs(name: str, config: dict[str, Any], original: bool) -> None:
    config = {**config, "use_original_formulation": original}
    theirs, ours = getattr(stock, name)(**config), getattr(fused, f"Fused{name}")(**config)
    steps = [draw(("uncond", "cond"), (2, 4, 16, 32), torch.float64, seed) for seed in range(6)]
    runs = []
    for _ in range(2):
        run = []
        for step, p in enumerate(steps):
            given = {f"pred_{n}": t for n, t in p.items()}
            expected, got = (at_step(g, step, len(steps)).forward(**given).pred for g in (theirs, ours))
            agree(got, expected)
            run.append(got)
        runs.append(run)
    assert all(map(torch.equal, *runs))
    fresh = ours.new()
    assert config_of(fresh) == config_of(ours) and len(fresh.state) == 0 and len(ours.state) == 1
    assert ours.get_state()["memory"] is ours.state and "average" in repr(ours)


def test_norms_over_other_dimensions() -> None:
    config = {
        "guidance_scale": 6.0,
        "adaptive_projected_guidance_norm_dim": [-1, -2],
        "eta": 0.3,
        "guidance_rescale": 0.5,
    }
    given = {f"pred_{n}": t for n, t in draw(("uncond", "cond"), (2, 4, 16, 32), torch.float64).items()}
    name = "AdaptiveProjectedGuidance"
    theirs, ours = getattr(stock, name)(**config), getattr(fused, f"Fused{name}")(**config)
    agree(at_step(ours, 0).forward(**given).pred, at_step(theirs, 0).forward(**given).pred)


@by_class
def test_config_round_trips(twin: Twin, tmp_path: Path) -> None:
    theirs, ours = twin.pair()
    assert isinstance(ours, twin.theirs) and config_of(ours) == config_of(theirs)
    swapped = twin.ours.from_config(theirs.config)
    ours.save_pretrained(tmp_path)
    loaded = twin.ours.from_pretrained(tmp_path)
    back = twin.theirs.from_config(ours.config)
    assert json.loads((tmp_path / ours.config_name).read_text())["_class_name"] == twin.ours.__name__
    for other in (swapped, loaded, back, ours.new()):
        assert config_of(other) == config_of(theirs), type(other)
    changed = ours.new(guidance_scale=4.25)
    assert changed.guidance_scale == 4.25 and ours.guidance_scale == twin.config["guidance_scale"]


@by_class
def test_disabled_gives_cond(twin: Twin) -> None:
    predictions = draw(twin.case, twin.shape, torch.float64)
    for guider in twin.pair(enabled=False):
        assert at_step(guider, STEP).num_conditions == 1
        agree(forward(guider, twin, predictions).pred, predictions["cond"])
    theirs, ours = twin.pair()
    for guider in (theirs, ours):
        at_step(guider, STEP).disable()
        assert guider.num_conditions == 1
    assert forward(ours, twin, predictions).pred is predictions["cond"]
    ours.enable()
    assert ours.num_conditions > 1 and forward(ours, twin, predictions).pred is not predictions["cond"]


@by_class
def test_state_and_inputs(twin: Twin) -> None:
    theirs, ours = twin.pair()
    model = torch.nn.Module()
    data = {"x": tuple(torch.full((1,), float(i)) for i in range(4)), "same": torch.zeros(1)}
    for guider in (theirs, ours):
        guider.set_state(step=STEP, num_inference_steps=STEPS, timestep=torch.tensor(7))
    assert {
        k: v for k, v in ours.get_state().items() if k in ("step", "num_inference_steps", "enabled", "num_conditions")
    } == {
        k: v for k, v in theirs.get_state().items() if k in ("step", "num_inference_steps", "enabled", "num_conditions")
    }
    batches = [guider.prepare_inputs(data) for guider in (theirs, ours)]
    assert [b.as_dict() for b in batches[1]] == [b.as_dict() for b in batches[0]]
    fields = {"x": ("a", "b", "c", "d"), "same": "e"}
    block = type(batches[0][0])(a=1, b=2, c=3, d=4, e=5)
    batches = [guider.prepare_inputs_from_block_state(block, fields) for guider in (theirs, ours)]
    assert [b.as_dict() for b in batches[1]] == [b.as_dict() for b in batches[0]]
    if twin.name not in ("LTX2Guidance", "ClassifierFreeGuidance"):
        return
    for count in range(ours.num_conditions):
        assert ours.is_conditional == theirs.is_conditional, count
        for guider in (theirs, ours):
            guider.prepare_models(model)
        assert ours.is_conditional == theirs.is_conditional, count


def test_enabled_needs_both() -> None:
    ours = at_step(fused.FusedClassifierFreeGuidance(guidance_scale=3.0), 0)
    with pytest.raises(ValueError, match="pred_uncond"):
        ours.forward(torch.zeros(2, 3), None)


@by_twin
def test_under_compile_without_a_graph_break(twin: Twin) -> None:
    """The whole of it is one graph for a run; tracing a sum may change its order, and with it its last bits."""
    torch._dynamo.reset()
    guider = twin.ours(**twin.config)
    names = list(twin.names)
    counter = CompileCounter()
    compiled = torch.compile(
        lambda *p: guider.forward(**dict(zip(map(twin.names.get, names), p, strict=True))).pred,
        fullgraph=True, backend=counter,
    )  # fmt: skip
    predictions = draw(twin.case, twin.shape, torch.float64)
    for step in range(4):
        at_step(guider, step, 4)
        got = compiled(*(predictions[name] for name in names))
        agree(got, forward(guider, twin, predictions).pred)
    assert counter.frame_count <= 2, "SLG, PAG and SEG have no perturbed pass at the first step"


def test_memory_and_schedules_under_compile() -> None:
    torch._dynamo.reset()
    guider = fused.FusedAdaptiveProjectedGuidance(
        guidance_scale=schedules.Ramp(2.0, 6.0), adaptive_projected_guidance_momentum=-0.5
    )
    twin = guider.new()
    counter = CompileCounter()
    compiled = torch.compile(lambda c, u: guider.forward(c, u).pred, fullgraph=True, backend=counter)
    for step in range(6):
        p = draw(("cond", "uncond"), (2, 4, 8, 8), torch.float64, step)
        agree(
            compiled(*p.values()) if at_step(guider, step, 6) else None,
            at_step(twin, step, 6).forward(*p.values()).pred,
        )
    assert counter.frame_count <= 4, "without and with a memory, a scale that is a constant and one that is not"


def test_scales_for_each_sample_and_schedules() -> None:
    p = draw(("cond", "uncond"), (3, 4, 8, 8), torch.float64)
    scales = [2.0, 3.5, 7.0]
    for given in (scales, torch.tensor(scales, dtype=torch.float64)):
        guider = fused.FusedClassifierFreeGuidance(guidance_scale=given, guidance_rescale=0.3)
        together = at_step(guider, 0).forward(*p.values()).pred
        for i, scale in enumerate(scales):
            alone = at_step(fused.FusedClassifierFreeGuidance(guidance_scale=scale, guidance_rescale=0.3), 0)
            agree(together[i : i + 1], alone.forward(*(t[i : i + 1] for t in p.values())).pred)
        assert guider.config["guidance_scale"] == scales
        assert torch.equal(at_step(guider.new(), 0).forward(*p.values()).pred, together)
    schedule = schedules.Ramp(1.0, 5.0)
    guider = fused.FusedClassifierFreeGuidance(guidance_scale=schedule)
    assert guider.num_conditions == 2, "a run may need both"
    for step in range(5):
        at_step(guider, step, 5)
        assert guider.num_conditions == (1 if step == 0 else 2)
        fixed = at_step(fused.FusedClassifierFreeGuidance(guidance_scale=1.0 + step), step, 5)
        assert torch.equal(guider.forward(*p.values()).pred, fixed.forward(*p.values()).pred)
    assert guider.new().guidance_scale == schedule


@pytest.mark.parametrize(
    "schedule", [schedules.Values((1.0, 2.0, 3.0)), schedules.Linear(1.0, 3.0)], ids=["values", "linear"]
)
def test_schedules_wait_for_the_step(schedule: schedules.Schedule) -> None:
    p = draw(("cond", "uncond"), (2, 3, 4, 4), torch.float64)
    made: list[Any] = [
        fused.FusedFrequencyDecoupledGuidance(guidance_scales=[schedule, 2.0]),
        *(
            cls(guidance_scale=schedule, guidance_rescale=schedules.Ramp(0.0, 0.5))
            for cls in (
                fused.FusedClassifierFreeGuidance,
                fused.FusedAdaptiveProjectedGuidance,
                fused.FusedAdaptiveProjectedMixGuidance,
                fused.FusedMagnitudeAwareGuidance,
                fused.FusedTangentialClassifierFreeGuidance,
                fused.FusedClassifierFreeZeroStarGuidance,
            )
        ),
    ]
    for guider in made:
        assert guider.num_conditions == 2
        with pytest.raises(ValueError, match="set_state: the guidance changes"):
            guider.forward(*p.values())
        again = type(guider).from_config(json.loads(guider.to_json_string()))
        for copy in (guider, again):
            copy.set_state(2, 3, None)
        plain = type(guider).from_config(guider.config)
        field = "guidance_scales" if hasattr(guider, "guidance_scales") else "guidance_scale"
        setattr(plain, field, [3.0, 2.0] if field == "guidance_scales" else 3.0)
        plain.guidance_rescale = guider.guidance_rescale if field == "guidance_scales" else 0.5
        plain.set_state(2, 3, None)
        results = [copy.forward(*p.values()).pred for copy in (guider, again, plain)]
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2]), type(guider).__name__


def test_what_is_set_later_counts() -> None:
    p = draw(("cond", "uncond"), (2, 4, 8, 8), torch.float64)
    guider = at_step(fused.FusedClassifierFreeGuidance(guidance_scale=3.0), 0)
    guider.guidance_scale = 5.0
    fixed = at_step(fused.FusedClassifierFreeGuidance(guidance_scale=5.0), 0)
    assert torch.equal(guider.forward(*p.values()).pred, fixed.forward(*p.values()).pred)


def test_bad_arguments_are_named() -> None:
    for given, error in (("7", TypeError), (float("nan"), ValueError), (torch.ones(2, 2), ValueError)):
        with pytest.raises(error, match="guidance_scale"):
            fused.FusedClassifierFreeGuidance(guidance_scale=given)
    with pytest.raises(ValueError, match="numerics"):
        fused.FusedClassifierFreeGuidance(numerics="bf16")
    with pytest.raises(ValueError, match="numerics"):
        fused.FusedClassifierFreeGuidance(guidance_rescale=0.5, numerics="eager")
    with pytest.raises(ValueError, match="start"):
        fused.FusedFrequencyDecoupledGuidance(start=[0.1])
    with pytest.raises(ValueError, match="seg_guidance_layers"):
        fused.FusedSmoothedEnergyGuidance(guidance_scale=1.0)


def test_the_page_names_every_guider() -> None:
    page = (Path(__file__).parents[3] / "docs" / "guiders.md").read_text()
    for name in fused.__all__:
        if name.endswith("Guidance") and name != "PipelineGuidance":
            assert f"`{name}" in page, name
    ours = {name for name in fused.__all__ if name.startswith("Fused")}
    theirs = {name for name in dir(stock) if name.endswith("Guidance") and name != "BaseGuidance"}
    assert ours == {f"Fused{name}" for name in theirs}, "a guider of diffusers without a counterpart"
