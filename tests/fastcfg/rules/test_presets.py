"""Presets, advice about scales, and the conventions of distilled models."""

from __future__ import annotations

import warnings

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from diffusers.models.embeddings import get_timestep_embedding

from fastcfg import CFG, GuidedDenoiser, guide
from fastcfg.denoiser.conventions import (
    check_double_guidance,
    flux_guidance_embedding,
    flux_guidance_value,
    lcm_embedding,
    lcm_weight,
    scale_from_lcm_weight,
)
from fastcfg.rules.presets import SWEET_SPOTS, Preset, all_presets, guard_extreme_scale, preset, sweet_spot_advice
from fastcfg.schedules import Ramp

TABLE = {
    "SD1.5": (7.5, 5, 12),
    "SDXL": (7, 5, 10),
    "Flux.1": (3.5, 2.5, 5),
    "Wan2.2": (5, 3.5, 7),
    "LTX-2": (5, 3, 7),
    "AnimateDiff": (7.5, 5, 9),
    "CogVideo": (6, 4, 8),
    "DALL-E 3": (None, None, None),
    "Kling": (4.5, None, None),
    "Sora": (4, None, None),
}


def test_values() -> None:
    assert {p.name: (p.scale, p.low, p.high) for p in all_presets()} == TABLE
    assert [p.name for p in all_presets() if p.estimated] == ["Kling", "Sora"]
    assert {p.name for p in all_presets() if p.medium == "video"} == {
        "Wan2.2", "LTX-2", "AnimateDiff", "CogVideo", "Kling", "Sora",
    }  # fmt: skip
    assert preset("sd-1.5") is preset("SD1.5") is preset("SD 1.5")
    with pytest.raises(ValueError, match=r"name: expected one of SD1\.5, SDXL"):
        preset("SD9")


@pytest.mark.parametrize("name", TABLE)
def test_rules(name: str) -> None:
    found = preset(name)
    if found.kind == "api":
        with pytest.raises(ValueError, match="service only"):
            found.rule()
    elif found.kind == "distilled":
        assert found.rule() == CFG(1.0)
        with pytest.raises(ValueError, match="scale"):
            found.rule(3.0)
    else:
        assert found.rule() == CFG(found.scale)
        assert found.rule(4.25) == CFG(4.25)


def test_a_distilled_model_runs_one_pass() -> None:
    calls = []

    def model(x: torch.Tensor, t: float, **kwargs: object) -> torch.Tensor:
        calls.append(x.shape[0])
        return x

    denoiser = GuidedDenoiser(model, preset("Flux.1").rule())
    denoiser(torch.ones(2, 3), 0.5, conditions={"uncond": {}, "cond": {}})
    assert calls == [2]


def test_advice() -> None:
    assert preset("SDXL").advice(7.0) == ()
    assert preset("SDXL").advice(5.0) == preset("SDXL").advice(10.0) == ()
    (text,) = preset("SDXL").advice(4.0)
    assert "weak adherence" in text and "5 ... 10" in text
    (text,) = preset("Wan2.2").advice(9.0)
    assert "flicker" in text
    assert "flicker" not in preset("SDXL").advice(11.0)[0]
    assert any("rescale" in text for text in preset("SDXL").advice(25.0))
    assert preset("Sora").advice(9.0) == ()


def test_sweet_spots() -> None:
    assert {s.metric: (s.image, s.video) for s in SWEET_SPOTS} == {
        "fidelity": ((5, 8), (3.5, 6)),
        "alignment": ((6, 10), (4, 7)),
        "human": ((5, 8), (4, 6)),
        "temporal": (None, (2, 5)),
    }
    assert "3.5 ... 6" in sweet_spot_advice("fidelity", "video")
    for arguments, name in ((("temporal",), "metric"), (("fid",), "metric"), (("human", "audio"), "medium")):
        with pytest.raises(ValueError, match=f"^{name}"):
            sweet_spot_advice(*arguments)


def test_extreme_scales() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rule in (CFG(20.0), CFG(25.0, rescale=0.5), CFG(25.0, rescale=0.9)):
            assert guard_extreme_scale(rule) is rule
        assert guard_extreme_scale(CFG(25.0, rescale=0.2), mode="auto") == CFG(25.0, rescale=0.5)
    with pytest.warns(UserWarning, match="rescale of at least 0.5"):
        assert guard_extreme_scale(CFG(25.0)) == CFG(25.0)
    with pytest.raises(ValueError, match="mode"):
        guard_extreme_scale(CFG(25.0), mode="fix")
    with pytest.raises(ValueError, match="rule"):
        guard_extreme_scale(CFG(Ramp(30.0, 1.0)))
    with pytest.raises(TypeError, match="rule"):
        guard_extreme_scale(25.0)


def test_automatic_rescale_keeps_half_types_finite() -> None:
    u = torch.full((1, 8), -3000.0).half()
    c = torch.linspace(-3000, 3000, 8).half()[None]
    assert torch.isinf(guide(CFG(25.0), uncond=u, cond=c)).any()
    repaired = guard_extreme_scale(CFG(25.0, rescale=0.0), mode="auto")
    wide = guide(repaired, uncond=u.float(), cond=c.float()).abs().max()
    assert wide < 0.6 * guide(CFG(25.0), uncond=u.float(), cond=c.float()).abs().max()


def test_double_guidance() -> None:
    with pytest.warns(UserWarning, match="second|distilled"):
        assert check_double_guidance(CFG(4.0), 3.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not check_double_guidance(CFG(1.0), 3.5)
        assert not check_double_guidance(CFG(4.0), None)


def test_lcm_weight() -> None:
    assert lcm_weight(7.5) == 6.5
    assert scale_from_lcm_weight(6.5) == 7.5
    assert torch.equal(lcm_weight(torch.tensor([7.5, 1.0])), torch.tensor([6.5, 0.0]))


@pytest.mark.parametrize("dim", [4, 255, 256, 512])
def test_lcm_embedding_is_diffusers(dim: int) -> None:
    scales = torch.tensor([1.0, 4.5, 8.5, 7.3])
    peer = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scales - 1, embedding_dim=dim)
    assert torch.equal(lcm_embedding(scales, dim), peer)
    assert torch.equal(lcm_embedding(8.5, dim), peer[2:3])


def test_flux_guidance() -> None:
    assert flux_guidance_value(3.5).tolist() == [3504.0]
    assert flux_guidance_value(3.5, torch.float32).tolist() == [3500.0]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        scales = torch.tensor([2.5, 3.5, 4.1])
        value = scales.to(dtype) * 1000
        assert torch.equal(flux_guidance_value(scales, dtype), value)
        peer = get_timestep_embedding(value, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
        torch.testing.assert_close(flux_guidance_embedding(scales, 256, dtype), peer, rtol=0, atol=1e-6)


def test_embedding_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="dim"):
        lcm_embedding(7.5, 3)
    with pytest.raises(ValueError, match="dim"):
        flux_guidance_embedding(3.5, 255)
    with pytest.raises(ValueError, match="dtype"):
        flux_guidance_value(3.5, torch.int32)
    with pytest.raises(ValueError, match="scale"):
        lcm_embedding(torch.ones(2, 2))
    with pytest.raises(ValueError, match="scale"):
        flux_guidance_value(float("nan"))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Stable Diffusion 1.5", "SD1.5"),
        ("Stable Diffusion XL", "SDXL"),
        ("Flux.1 (Black Forest Labs)", "Flux.1"),
        ("wan 2.2 t2v", "Wan2.2"),
        ("LTX-2", "LTX-2"),
        ("AnimateDiff", "AnimateDiff"),
        ("CogVideo", "CogVideo"),
    ],
)
def test_names_of_the_survey(written: str, name: str) -> None:
    assert preset(written) is preset(name)


@pytest.mark.parametrize("written", ["DALL-E 3 (via API)", "Kling 3.0", "Sora 2"])
def test_served_models_are_refused_by_name(written: str) -> None:
    found = preset(written)
    with pytest.raises(ValueError, match=f"{found.name} is available as a service only"):
        found.rule()


def test_a_scale_on_the_conditional_prediction_is_no_unit_short() -> None:
    own = Preset("mine", 4.5, 2.0, 6.0, base="cond")
    u, c = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(guide(own.rule(), uncond=u, cond=c), c + 4.5 * (c - u))
