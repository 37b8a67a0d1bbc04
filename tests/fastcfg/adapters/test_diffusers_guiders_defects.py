"""What diffusers' guiders get wrong, still, and fused ones right: a test that fails here wants a docstring changed."""

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers.guiders")
pytest.importorskip("transformers")

from conformance.cases import draw, exact
from conformance.guider_twins import KORNIA, at_step
from conformance.oracles import projection
from conformance.oracles.rounding import error_in_ideal_units
from conformance.tiny_modular import pictures, sdxl, wan
from diffusers import LayerSkipConfig, PixArtTransformer2DModel
from diffusers import guiders as stock
from diffusers.hooks import SmoothedEnergyGuidanceConfig
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import fastcfg.adapters.diffusers as fused
from fastcfg import Autoguidance, Perturbed
from fastcfg.adapters.diffusers.guiders.layers import LayerSwitch
from fastcfg.adapters.diffusers.guiders.smoothing import blur_queries

GIVEN = {f"pred_{n}": t for n, t in draw(("uncond", "cond"), (2, 4, 16, 32), torch.float64).items()}


@pytest.fixture(autouse=True)
def own_guider() -> Iterator[None]:
    yield
    for pipe in (sdxl(), wan()):
        pipe.update_components(guider=stock.ClassifierFreeGuidance(guidance_scale=5.0))


@pytest.fixture(scope="module")
def model() -> PixArtTransformer2DModel:
    return tiny()


def tiny() -> PixArtTransformer2DModel:
    torch.manual_seed(0)
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, num_layers=2, cross_attention_dim=8, sample_size=4, in_channels=4,
        out_channels=4, caption_channels=8, use_additional_conditions=False, norm_num_groups=2, patch_size=1,
    ).eval().requires_grad_(False)  # fmt: skip


def run(guider: Any, model: nn.Module, step: int = 3) -> dict[str, Tensor]:
    """The passes of a step as a pipeline runs them, by name."""
    generator = torch.Generator().manual_seed(0)
    latents, cond, uncond = (torch.randn(1, *shape, generator=generator) for shape in ((4, 4, 4), (5, 8), (5, 8)))
    guider.set_state(step=step, num_inference_steps=10, timestep=torch.tensor(500))
    results = {}
    for batch in guider.prepare_inputs({"encoder_hidden_states": (cond, uncond)}):
        guider.prepare_models(model)
        results[batch["__guidance_identifier__"]] = model(
            latents, batch.encoder_hidden_states, timestep=torch.tensor([500]), return_dict=False
        )[0]
        guider.cleanup_models(model)
    return results


def weak(name: str, **config: Any) -> dict[str, Any]:
    prefix = {"SkipLayerGuidance": "skip_layer_guidance", "PerturbedAttentionGuidance": "perturbed_guidance"}.get(
        name, "seg_guidance"
    )
    return {f"{prefix}_start": 0.0, f"{prefix}_stop": 1.0, **config}


SKIP: dict[str, dict[str, Any]] = {
    "SkipLayerGuidance": {"skip_layer_config": LayerSkipConfig(indices=[1])},
    "PerturbedAttentionGuidance": {"perturbed_guidance_layers": [1]},
}


# --- Passes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SKIP)
def test_the_weakened_pass_is_the_twins_where_cfg_is_on(name: str, model: nn.Module) -> None:
    config = weak(name, guidance_scale=4.0, **SKIP[name])
    theirs, ours = (
        run(getattr(package, prefix + name)(**config), model) for package, prefix in ((stock, ""), (fused, "Fused"))
    )
    assert list(ours) == list(theirs) == ["pred_cond", "pred_uncond", "pred_cond_skip"]
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert not torch.equal(ours["pred_cond_skip"], ours["pred_cond"])


SWITCHED = {
    "SkipLayerGuidance": weak("SkipLayerGuidance", **SKIP["SkipLayerGuidance"]),
    "AutoGuidance": {"auto_guidance_config": LayerSkipConfig(indices=[1])},
    "SmoothedEnergyGuidance": weak("SmoothedEnergyGuidance", seg_blur_sigma=3.0, seg_guidance_layers=[1]),
}


@pytest.mark.parametrize("name", SWITCHED)
def test_a_compiled_model_has_two_versions(name: str) -> None:
    """diffusers makes a hook for each weak pass, and a compiled model is compiled anew for each."""
    model = tiny()
    guider = getattr(fused, f"Fused{name}")(**SWITCHED[name])
    expected = [run(guider, model, step) for step in (3, 4, 9)]
    assert not any("forward" in vars(module) for module in model.modules()), "taken out when the run is over"
    counter = CompileCounter()
    torch._dynamo.reset()
    model.compile(backend=counter, fullgraph=True)
    try:
        for _ in range(2):
            got = [run(guider, model, step) for step in (3, 4, 9)]
            assert all(torch.equal(a[key], b[key]) for a, b in zip(got, expected, strict=True) for key in b)
    finally:
        model._compiled_call_impl = None
        torch._dynamo.reset()
    assert counter.frame_count == 2
    run(guider, model, 3)
    assert any("forward" in vars(module) for module in model.modules()), "for the length of a run"
    del guider
    gc.collect()
    assert not any("forward" in vars(module) for module in model.modules()), "and no longer than the guider"


def test_a_block_of_two_streams_hands_on_its_inputs_in_the_order_of_its_outputs() -> None:
    """Flux's gives the text first; diffusers' own hook hands its inputs on the other way round."""
    from diffusers.models.transformers.transformer_flux import FluxTransformerBlock

    stack = nn.Module()
    stack.transformer_blocks = nn.ModuleList([FluxTransformerBlock(8, 2, 4)])
    image, text, temb = torch.ones(1, 4, 8), torch.zeros(1, 3, 8), torch.ones(1, 8)
    switch = LayerSwitch(stack, [LayerSkipConfig(indices=[0])])
    block = stack.transformer_blocks[0]
    with switch.weak():
        first, second = block(image, text, temb)
        assert first is text and second is image
    assert "forward" not in vars(block) and not torch.equal(block(image, text, temb)[1], image)


def test_a_rule_weakens_the_conditional_pass(model: nn.Module) -> None:
    """So does autoguidance by its paper; diffusers' AutoGuidance weakens the negative one."""
    twin = run(
        fused.FusedSkipLayerGuidance(**weak("SkipLayerGuidance", guidance_scale=4.0, **SKIP["SkipLayerGuidance"])),
        model,
    )
    three = run(fused.RuleGuidance(Perturbed(4.0, 2.0), perturbed={"indices": [1]}), model)
    assert list(three) == ["pred_cond", "pred_uncond", "pred_perturbed"]
    two = run(fused.RuleGuidance(Autoguidance(2.0), perturbed={"indices": [1]}), model)
    assert list(two) == ["pred_cond", "pred_perturbed"]
    assert torch.equal(three["pred_perturbed"], twin["pred_cond_skip"])
    assert torch.equal(two["pred_perturbed"], twin["pred_cond_skip"])
    theirs = run(stock.AutoGuidance(auto_guidance_config=LayerSkipConfig(indices=[1]), dropout=1.0), model)
    assert not torch.equal(theirs["pred_uncond"], twin["pred_cond_skip"])


@pytest.mark.parametrize("name", SKIP)
def test_without_cfg_diffusers_weakens_nothing_and_takes_the_negative_prompt(name: str, model: nn.Module) -> None:
    plain = run(stock.ClassifierFreeGuidance(guidance_scale=4.0), model)
    full = run(getattr(stock, name)(**weak(name, guidance_scale=4.0, **SKIP[name])), model)
    config = weak(name, guidance_scale=1.0, **SKIP[name])
    theirs, ours = (
        run(getattr(package, prefix + name)(**config), model) for package, prefix in ((stock, ""), (fused, "Fused"))
    )
    assert list(ours) == list(theirs) == ["pred_cond", "pred_cond_skip"]
    assert torch.equal(theirs["pred_cond_skip"], plain["pred_uncond"])
    assert torch.equal(ours["pred_cond_skip"], full["pred_cond_skip"])


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("SkipLayerGuidance", weak("SkipLayerGuidance", skip_layer_guidance_layers=[1])),
        ("PerturbedAttentionGuidance", weak("PerturbedAttentionGuidance", perturbed_guidance_layers=1)),
        ("AutoGuidance", {"auto_guidance_layers": [1], "dropout": 1.0}),
    ],
)
def test_layers_by_number(name: str, config: dict[str, Any], model: nn.Module) -> None:
    with pytest.raises(TypeError, match="len"):
        run(getattr(stock, name)(**config), model)
    for module in model.modules():
        if hasattr(module, "_diffusers_hook"):
            assert not module._diffusers_hook.hooks
    passes = run(getattr(fused, f"Fused{name}")(**config), model)
    assert not torch.equal(list(passes.values())[-1], passes["pred_cond"])


def test_perturbed_attention_of_a_processor_that_diffusers_does_not_know() -> None:
    config = weak("PerturbedAttentionGuidance", guidance_scale=4.0, perturbed_guidance_layers=[0])
    with pytest.raises(ValueError, match="not registered"):
        pictures(wan(), stock.PerturbedAttentionGuidance(**config))
    plain = pictures(wan(), fused.FusedClassifierFreeGuidance(guidance_scale=4.0))
    assert not torch.equal(pictures(wan(), fused.FusedPerturbedAttentionGuidance(**config)), plain)
    assert torch.equal(pictures(wan(), fused.FusedClassifierFreeGuidance(guidance_scale=4.0)), plain), "it is undone"


def test_smoothed_energy_is_never_smoothed_there(model: nn.Module) -> None:
    for layers in ({"seg_guidance_layers": [1]}, {"seg_guidance_config": SmoothedEnergyGuidanceConfig([1])}):
        config = weak("SmoothedEnergyGuidance", guidance_scale=4.0, **layers)
        theirs, ours = (
            run(stock.SmoothedEnergyGuidance(**config), model),
            run(fused.FusedSmoothedEnergyGuidance(**config), model),
        )
        assert torch.equal(theirs["pred_cond_seg"], theirs["pred_cond"])
        assert torch.equal(ours["pred_cond"], theirs["pred_cond"])
        assert not torch.equal(ours["pred_cond_seg"], ours["pred_cond"])
    again = run(stock.ClassifierFreeGuidance(guidance_scale=4.0), model)
    assert torch.equal(again["pred_cond"], ours["pred_cond"]), "the blur is taken away"
    for bad, match in (
        ({"seg_guidance_layers": [7]}, "indices"),
        ({"seg_guidance_config": {"indices": [0], "fqn": "norm"}}, "fqn"),
    ):
        with pytest.raises(ValueError, match=match):
            run(fused.FusedSmoothedEnergyGuidance(**weak("SEG", guidance_scale=4.0, **bad)), model)


def test_queries_are_blurred_as_the_paper_has_it() -> None:
    queries = draw(("q",), (2, 38, 5), torch.float64)["q"]
    image = queries[:, :36].numpy().reshape(2, 6, 6, 5)
    infinite = blur_queries(queries, 1e7, 9999.0)
    mean = np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape).reshape(2, 36, 5)
    np.testing.assert_allclose(infinite[:, :36].numpy(), mean, rtol=0, atol=2.0**-48)
    taps = np.exp(-0.5 * (np.arange(-3, 4) / 1.0) ** 2)
    taps /= taps.sum()
    padded = np.pad(image, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
    rows = sum(t * padded[:, k : k + 6] for k, t in enumerate(taps))
    blurred = sum(t * rows[:, :, k : k + 6] for k, t in enumerate(taps)).reshape(2, 36, 5)
    got = blur_queries(queries, 1.0, 9999.0)
    np.testing.assert_allclose(got[:, :36].numpy(), blurred, rtol=0, atol=2.0**-48)
    # diffusers has the two the other way round.
    theirs = _gaussian_blur_2d(queries.clone(), 7, 1.0, 9999.0)
    np.testing.assert_allclose(theirs[:, :36].numpy(), mean, rtol=0, atol=2.0**-48)
    for result in (infinite, got):
        assert torch.equal(result[:, 36:], queries[:, 36:])
    assert blur_queries(queries, 0.0, 9999.0) is queries
    # A wide blur stays within the image, which reflects what is beyond it.
    assert blur_queries(queries, 100.0, 9999.0).isfinite().all()


def test_a_window_that_ends_early_and_a_second_run() -> None:
    """diffusers asks the guider at the last run's last step whether the negative prompt is needed."""
    theirs = stock.ClassifierFreeGuidance(guidance_scale=5.0, stop=0.5)
    expected = pictures(sdxl(), theirs)
    with pytest.raises(AttributeError, match="NoneType"):
        pictures(sdxl())
    sdxl().update_components(guider=theirs.new())
    with fused.fuse(sdxl(), numerics="eager"):
        for _ in range(2):
            assert torch.equal(pictures(sdxl()), expected)


# --- Values -----------------------------------------------------------------------------------------------------------


def test_tangential_guidance_does_not_know_whether_it_is_conditional() -> None:
    with pytest.raises(AttributeError, match="is_conditional"):
        _ = stock.TangentialClassifierFreeGuidance().is_conditional
    guider = at_step(fused.FusedTangentialClassifierFreeGuidance(), 0)
    seen = [guider.is_conditional]
    for _ in range(2):
        guider.prepare_models(nn.Module())
        seen.append(guider.is_conditional)
    assert seen == [False, True, False]


@pytest.mark.skipif(not KORNIA, reason="diffusers' FDG needs kornia")
def test_frequency_levels_with_windows_of_their_own() -> None:
    config = {"guidance_scales": [6.0, 3.0], "start": [0.5, 0.0], "stop": [1.0, 1.0]}
    with pytest.raises(UnboundLocalError):
        at_step(stock.FrequencyDecoupledGuidance(**config), 3).forward(**GIVEN)
    ours = at_step(fused.FusedFrequencyDecoupledGuidance(**config), 3).forward(**GIVEN).pred
    # Before its window a level is the conditional prediction's own, which is its scale at 1.
    expected = projection.fdg(uncond=GIVEN["pred_uncond"].numpy(), cond=GIVEN["pred_cond"].numpy(), scales=(1.0, 3.0))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=2.0**-44)
    odd = {name: tensor[..., :15, :21] for name, tensor in GIVEN.items()}
    assert at_step(stock.FrequencyDecoupledGuidance(), 3).forward(**odd).pred.shape != odd["pred_cond"].shape
    assert at_step(fused.FusedFrequencyDecoupledGuidance(), 3).forward(**odd).pred.shape == odd["pred_cond"].shape


def test_zero_star_with_a_rescale() -> None:
    config = {"zero_init_steps": 2, "guidance_rescale": 0.5}
    assert at_step(stock.ClassifierFreeZeroStarGuidance(**config), 1).forward(**GIVEN).pred.isnan().all()
    ours = at_step(fused.FusedClassifierFreeZeroStarGuidance(**config), 1)
    assert ours.num_conditions == 1 and not ours.forward(GIVEN["pred_cond"]).pred.any()
    assert at_step(ours, 2).num_conditions == 2


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 2)], ids=str)
def test_magnitude_aware_guidance_of_images_and_videos(shape: tuple[int, ...]) -> None:
    predictions = draw(("uncond", "cond"), shape, torch.float64)
    given = {f"pred_{n}": t for n, t in predictions.items()}
    with pytest.raises(RuntimeError):
        at_step(stock.MagnitudeAwareGuidance(), 0).forward(**given)
    ours = at_step(fused.FusedMagnitudeAwareGuidance(guidance_scale=7.5), 0).forward(**given).pred
    expected = projection.mambo_g(**exact(predictions), scale=7.5, alpha=8.0)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=2.0**-44)
    flat = {name: tensor.flatten(1) for name, tensor in given.items()} | {
        "pred_uncond": torch.zeros(2, given["pred_cond"][0].numel())
    }
    flat["pred_cond"] = flat["pred_cond"].float()
    assert at_step(fused.FusedMagnitudeAwareGuidance(), 0).forward(**flat).pred.isfinite().all()


def test_scales_for_each_sample() -> None:
    scales = torch.tensor([2.0, 3.0])
    with pytest.raises((TypeError, RuntimeError, ValueError)):
        at_step(stock.ClassifierFreeGuidance(guidance_scale=scales), 0).forward(**GIVEN)
    assert at_step(fused.FusedClassifierFreeGuidance(guidance_scale=scales), 0).forward(**GIVEN).pred.isfinite().all()


def test_no_spread_is_not_a_number_there_and_finite_here() -> None:
    flat = torch.full((1, 4, 8, 8), 0.5)
    config = {"guidance_scale": 3.0, "guidance_rescale": 0.7}
    assert at_step(stock.ClassifierFreeGuidance(**config), 0).forward(flat, flat).pred.isnan().all()
    assert torch.equal(at_step(fused.FusedClassifierFreeGuidance(**config), 0).forward(flat, flat).pred, flat)


def test_norms_beyond_float16() -> None:
    """diffusers' norm is infinite there, its limit zero, and the guidance gone."""
    given = {name: (300 * tensor).half() for name, tensor in GIVEN.items()}
    large = {name: tensor.repeat(1, 8, 8, 8) for name, tensor in given.items()}
    config = {"guidance_scale": 4.0, "adaptive_projected_guidance_rescale": 1e4, "eta": 1.0}
    theirs = at_step(stock.AdaptiveProjectedGuidance(**config), 0).forward(**large).pred
    ours = at_step(fused.FusedAdaptiveProjectedGuidance(**config), 0).forward(**large).pred
    assert torch.equal(theirs, large["pred_uncond"])
    arrays = {name.removeprefix("pred_"): tensor.double().numpy() for name, tensor in large.items()}
    expected, _ = projection.apg(**arrays, scale=4.0, eta=1.0, norm_threshold=1e4)
    assert error_in_ideal_units(ours, expected) <= 1.01


def test_attributes_of_the_output_under_compile() -> None:
    def pred(guider: Any) -> Any:
        torch._dynamo.reset()
        at_step(guider, 0)
        return torch.compile(lambda c, u: guider.forward(c, u).pred, backend="eager", fullgraph=True)

    given = (GIVEN["pred_cond"], GIVEN["pred_uncond"])
    with pytest.raises(torch._dynamo.exc.Unsupported):
        pred(stock.ClassifierFreeGuidance(guidance_scale=3.0))(*given)
    ours = pred(fused.FusedClassifierFreeGuidance(guidance_scale=3.0))(*given)
    assert torch.equal(ours, at_step(fused.FusedClassifierFreeGuidance(guidance_scale=3.0), 0).forward(*given).pred)


# --- State and config -------------------------------------------------------------------------------------------------


def test_momentum_of_a_guider_whose_run_begins_late() -> None:
    """The second guider of a two-model pipeline is first called at a later step than 0."""
    config: dict[str, Any] = {"adaptive_projected_guidance_momentum": 0.8, "eta": 0.0}
    theirs, ours = stock.AdaptiveProjectedGuidance(**config), fused.FusedAdaptiveProjectedGuidance(**config)
    without = fused.FusedAdaptiveProjectedGuidance(eta=0.0)
    for _ in range(2):
        for step in (3, 4):
            p = {f"pred_{n}": t for n, t in draw(("uncond", "cond"), (2, 4, 8, 8), torch.float64, step).items()}
            plain = at_step(without, step, 5).forward(**p).pred
            torch.testing.assert_close(at_step(theirs, step, 5).forward(**p).pred, plain, rtol=0, atol=2.0**-42)
            got = at_step(ours, step, 5).forward(**p).pred
            assert torch.equal(got, plain) == (step == 3), "the first step has nothing to remember"


def test_arguments_given_by_place_reach_the_config() -> None:
    assert stock.ClassifierFreeGuidance(3.0).new().guidance_scale == 7.5
    assert fused.FusedClassifierFreeGuidance(3.0).new().guidance_scale == 3.0


def test_between_the_runs_of_a_model_that_ends_early() -> None:
    """The first guider of a two-model pipeline is last called before the run is over."""
    theirs, ours = (
        package(guidance_scale=4.0, stop=0.25)
        for package in (stock.ClassifierFreeGuidance, fused.FusedClassifierFreeGuidance)
    )
    for guider in (theirs, ours):
        for step in range(4):
            guider.set_state(step=step, num_inference_steps=10, timestep=torch.tensor(0))
            batches = guider.prepare_inputs({"x": (None, None)})
            assert len(batches) == guider.num_conditions == (2 if step < 2 else 1)
            for batch in batches:
                batch.noise_pred = GIVEN["pred_cond"]
            guider(batches)
    assert theirs.num_conditions == 1
    assert ours.num_conditions == 2, "the next run begins with two"
