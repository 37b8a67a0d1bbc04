"""The fused guider against diffusers' own, which it replaces."""

import pytest
import torch

pytest.importorskip("diffusers.guiders")

from conformance.oracles import classifier_free, rescale
from conformance.oracles.rounding import error_in_ideal_units
from diffusers.guiders import ClassifierFreeGuidance

from fastcfg.adapters.diffusers import FusedClassifierFreeGuidance

CONFIGS = [
    {"guidance_scale": 7.5},
    {"guidance_scale": 7.5, "guidance_rescale": 0.7},
    {"guidance_scale": 3.0, "guidance_rescale": 1.0},
    {"guidance_scale": 2.5, "use_original_formulation": True},
    {"guidance_scale": 2.5, "guidance_rescale": 0.5, "use_original_formulation": True},
]
by_config = pytest.mark.parametrize("config", CONFIGS, ids=str)


def twins(config: dict, step: int = 0, steps: int = 10) -> tuple[ClassifierFreeGuidance, FusedClassifierFreeGuidance]:
    pair = ClassifierFreeGuidance(**config), FusedClassifierFreeGuidance(**config)
    for guider in pair:
        guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(500))
    return pair


def draw(dtype: torch.dtype, shape: tuple[int, ...] = (2, 4, 16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(shape, generator=generator)
    return u.to(dtype), (u + 0.5 * torch.randn(shape, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@by_config
def test_as_near_to_exact_as_its_twin_or_nearer(config: dict, dtype: torch.dtype) -> None:
    u, c = draw(dtype)
    theirs, ours = (guider.forward(c, u).pred for guider in twins(config))
    base = "cond" if config.get("use_original_formulation") else "uncond"
    arrays = {"uncond": u.double().numpy(), "cond": c.double().numpy()}
    exact = classifier_free.cfg(**arrays, scale=config["guidance_scale"], base=base)
    exact = rescale.rescale_std(guided=exact, cond=arrays["cond"], phi=config.get("guidance_rescale", 0.0))
    own = error_in_ideal_units(ours, exact)
    if dtype == torch.float32:
        torch.testing.assert_close(ours, theirs, rtol=2**-20, atol=2**-20)
        assert own < 3
    else:
        assert own < 1.01 and own < error_in_ideal_units(theirs, exact)
    assert ours.dtype == dtype


@by_config
@pytest.mark.parametrize("window", [(0.0, 1.0), (0.2, 0.7), (0.5, 1.0)])
def test_windows(config: dict, window: tuple[float, float]) -> None:
    u, c = draw(torch.float32)
    for step in range(10):
        theirs, ours = twins({**config, "start": window[0], "stop": window[1]}, step)
        assert ours.num_conditions == theirs.num_conditions
        a, b = (guider.forward(c, u if guider.num_conditions > 1 else None).pred for guider in (theirs, ours))
        torch.testing.assert_close(b, a, rtol=2**-20, atol=2**-20)
        if ours.num_conditions == 1:
            assert b is c


@pytest.mark.parametrize(
    "config",
    [{"guidance_scale": 1.0}, {"guidance_scale": 0.0, "use_original_formulation": True}, {"enabled": False}],
    ids=str,
)
def test_disabled_gives_cond(config: dict) -> None:
    u, c = draw(torch.bfloat16)
    theirs, ours = twins(config)
    assert ours.num_conditions == theirs.num_conditions == 1
    assert ours.forward(c, None).pred is c and torch.equal(theirs.forward(c, None).pred, c)
    assert ours.forward(c, u).pred is c


def test_enabled_needs_both() -> None:
    _, ours = twins({"guidance_scale": 3.0})
    with pytest.raises(ValueError, match="pred_uncond"):
        ours.forward(draw(torch.float32)[1], None)


@by_config
def test_config_round_trip(config: dict, tmp_path: object) -> None:
    _, ours = twins(config)
    back = FusedClassifierFreeGuidance.from_config(ours.config)
    assert dict(back.config) == dict(ours.config) and isinstance(back, FusedClassifierFreeGuidance)
    assert isinstance(ours, ClassifierFreeGuidance)
    ours.save_pretrained(tmp_path)
    loaded = FusedClassifierFreeGuidance.from_pretrained(tmp_path)
    assert loaded.guidance_scale == config["guidance_scale"]
    swapped = FusedClassifierFreeGuidance.from_config(ClassifierFreeGuidance(**config).config)
    assert {k: v for k, v in swapped.config.items() if not k.startswith("_")} == {
        k: v for k, v in ours.config.items() if not k.startswith("_")
    }


def test_no_spread_is_not_a_number_there_and_finite_here() -> None:
    theirs, ours = twins({"guidance_scale": 3.0, "guidance_rescale": 0.7})
    flat = torch.full((1, 4, 8, 8), 0.5)
    assert theirs.forward(flat, flat).pred.isnan().all()
    assert torch.equal(ours.forward(flat, flat).pred, flat)
