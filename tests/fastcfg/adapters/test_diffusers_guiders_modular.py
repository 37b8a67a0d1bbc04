"""Modular pipelines of diffusers with their own guiders and with fused ones, and what :func:`fuse` says it did."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers.modular_pipelines")
pytest.importorskip("transformers")

from conformance.guider_twins import KORNIA
from conformance.tiny_modular import TOKENS, WIDTH, drawn, pictures, sdxl, wan
from diffusers import DDIMScheduler, DDPMPipeline, FlowMatchEulerDiscreteScheduler, LayerSkipConfig, UNet2DModel
from diffusers import guiders as stock
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.modular_pipelines.ltx2.denoise import LTX2LoopDenoiser
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.wan.decoders import WanVaeDecoderStep

import fastcfg.adapters.diffusers as fused
from fastcfg import APG, CFG, DualCFG, InDomain, InstructPix2Pix, MultiCondition, PerpNeg, schedules

PIPES = {"sdxl": sdxl, "wan": wan}
by_pipe = pytest.mark.parametrize("pipe", PIPES.values(), ids=PIPES)


@pytest.fixture(autouse=True)
def own_guider() -> Iterator[None]:
    """Pipelines are built once; each test leaves them the guider that they have from the start."""
    yield
    for build in PIPES.values():
        build().update_components(guider=stock.ClassifierFreeGuidance(guidance_scale=5.0))


def skip(**config: Any) -> LayerSkipConfig:
    return LayerSkipConfig(indices=[0], **config)


@pytest.mark.parametrize("window", [{}, {"start": 0.4}, {"stop": 0.7}], ids=str)
@by_pipe
def test_plain_cfg_in_eager_numerics_gives_the_same_pictures(pipe: Callable[[], Any], window: dict[str, Any]) -> None:
    expected = pictures(pipe(), stock.ClassifierFreeGuidance(guidance_scale=5.0, **window))
    assert expected.isfinite().all() and expected.std() > 0
    with fused.fuse(pipe(), numerics="eager"):
        assert isinstance(pipe().guider, fused.FusedClassifierFreeGuidance)
        assert torch.equal(pictures(pipe()), expected)


class Moved(BaseGuidance):
    """A guider whose results are moved up or down by one spacing of their dtype, for a control."""

    def __init__(self, guider: BaseGuidance) -> None:
        self.__dict__["guider"] = guider

    def __getattribute__(self, name: str) -> Any:
        if name in ("guider", "__dict__", "__class__", "forward", "__call__"):
            return super().__getattribute__(name)
        return getattr(super().__getattribute__("guider"), name)

    def __call__(self, data: list[Any]) -> Any:
        pred: Tensor = self.guider(data)[0]
        up = drawn(*pred.shape, seed=self.guider._step) > 0
        return (torch.nextafter(pred, torch.where(up, torch.inf, -torch.inf)),)


def throughout(prefix: str, **config: Any) -> dict[str, Any]:
    """A weakened pass at every step but the first, which diffusers' windows never hold."""
    return {"guidance_scale": 4.0, f"{prefix}_start": 0.0, f"{prefix}_stop": 1.0, **config}


WEAKENED: list[tuple[str, dict[str, Any]]] = [
    ("AutoGuidance", {"guidance_scale": 3.0, "auto_guidance_config": skip()}),
    ("SkipLayerGuidance", throughout("skip_layer_guidance", skip_layer_config=skip())),
]
RULES: list[tuple[str, str, dict[str, Any]]] = [
    ("sdxl", "ClassifierFreeGuidance", {"guidance_scale": 5.0}),
    ("sdxl", "ClassifierFreeGuidance", {"guidance_scale": 5.0, "guidance_rescale": 0.7}),
    ("sdxl", "AdaptiveProjectedGuidance", {"eta": 0.0, "adaptive_projected_guidance_momentum": -0.5}),
    ("sdxl", "AdaptiveProjectedMixGuidance", {"adaptive_projected_guidance_start_step": 0}),
    ("sdxl", "TangentialClassifierFreeGuidance", {"guidance_scale": 5.0}),
    ("wan", "ClassifierFreeZeroStarGuidance", {"guidance_scale": 5.0}),
    ("wan", "AdaptiveProjectedGuidance", {"adaptive_projected_guidance_momentum": 0.5, "guidance_rescale": 0.5}),
    *(("wan", name, config) for name, config in WEAKENED),
]
if KORNIA:
    RULES.append(("sdxl", "FrequencyDecoupledGuidance", {"guidance_scales": [6.0, 3.0]}))


@pytest.mark.parametrize(
    ("name", "guider", "config"), RULES, ids=lambda value: value if isinstance(value, str) else None
)
def test_other_rules_beside_a_control_of_one_spacing(name: str, guider: str, config: dict[str, Any]) -> None:
    """Each guided prediction is within a few spacings of diffusers' own: as far as a few such moves go, go pictures."""
    pipe = PIPES[name]()
    theirs = getattr(stock, guider)(**config)
    expected = pictures(pipe, theirs)
    control = pictures(pipe, Moved(theirs.new()))
    report = fused.fuse(pipe)  # Of the control, which is of an unknown class.
    assert not report.swapped and list(report.kept) == ["guider"]
    pipe.update_components(guider=theirs.new())
    report = fused.fuse(pipe)
    assert str(report) == f"guider: {guider} -> Fused{guider}"
    got = pictures(pipe)
    moved = float((control - expected).square().mean().sqrt())
    error = float((got - expected).square().mean().sqrt())
    # Scales of 10 round their terms at up to 16 times the result's spacing, a projection of a sum of them twice.
    assert moved > 0 and error <= 32 * moved
    assert torch.equal(pictures(pipe), got), "a second run is the same"


@pytest.mark.parametrize(("guider", "config"), WEAKENED, ids=[name for name, _ in WEAKENED])
def test_weakened_passes_in_eager_numerics_give_the_same_pictures(guider: str, config: dict[str, Any]) -> None:
    expected = pictures(wan(), getattr(stock, guider)(**config))
    plain = pictures(wan(), stock.ClassifierFreeGuidance(guidance_scale=config["guidance_scale"]))
    assert not torch.equal(expected, plain), "the weakened pass does something"
    wan().update_components(guider=getattr(stock, guider)(**config))
    with fused.fuse(wan(), numerics="eager"):
        assert torch.equal(pictures(wan()), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in wan().transformer.modules())


def given(condition: str) -> dict[str, dict[str, Tensor]]:
    """The negative prompt's inputs for a condition besides."""
    return {condition: {"encoder_hidden_states": drawn(1, TOKENS, WIDTH, seed=2)}}


SAME_AS_CFG: list[tuple[Any, str | None]] = [
    (fused.RuleGuidance(CFG(5.0)), None),
    (fused.RuleGuidance(InDomain(CFG(5.0))), None),
    (fused.RuleGuidance(InDomain(APG(5.0, 1.0, 0.0))), None),
    (fused.RuleGuidance(CFG(), params={"scale": [5.0]}), None),
    (fused.RuleGuidance(PerpNeg(5.0, (2.0,))), "negative"),
    (fused.RuleGuidance(DualCFG(5.0, 2.0)), "negative"),
    (fused.RuleGuidance(InstructPix2Pix(5.0, 2.0)), "image"),
    (fused.RuleGuidance(MultiCondition((5.0, 3.0))), "cond_2"),
    (fused.PerpNegGuidance(5.0, 2.0), "negative"),
    (fused.DualGuidance(5.0, 2.0), "negative"),
    (fused.InstructPix2PixGuidance(5.0, 2.0), "image"),
    (fused.MultiConditionGuidance([5.0, 3.0]), "cond_2"),
    (fused.ScheduledGuidance(schedules.Constant(5.0)), None),
    (fused.FrameGuidance([5.0, 5.0]), None),
]


@pytest.mark.parametrize(
    ("guider", "condition"),
    SAME_AS_CFG,
    ids=[f"{type(g).__name__}-{type(g._whole()).__name__}" for g, _ in SAME_AS_CFG],
)
def test_guiders_by_rule_where_they_are_cfg(guider: Any, condition: str | None) -> None:
    """With the negative prompt for their third condition these rules are CFG, through a whole pipeline."""
    theirs = stock.ClassifierFreeGuidance(guidance_scale=5.0)
    expected, control = pictures(wan(), theirs), pictures(wan(), Moved(theirs.new()))
    guider.inputs = {} if condition is None else given(condition)
    guider.scheduler = wan().scheduler
    got = pictures(wan(), guider)
    assert (got - expected).square().mean().sqrt() <= 4 * (control - expected).square().mean().sqrt()
    back = type(guider).from_config(guider.config)
    back.inputs, back.scheduler = guider.inputs, guider.scheduler
    assert torch.equal(pictures(wan(), back), got)


def test_guiders_by_rule_where_they_are_not_cfg() -> None:
    plain = pictures(wan())
    others = {
        "perp-neg": fused.PerpNegGuidance(5.0, 2.0),
        "dual": fused.DualGuidance(5.0, 2.0),
        "frames": fused.FrameGuidance([2.0, 8.0]),
        "schedule": fused.ScheduledGuidance(schedules.Ramp(1.0, 5.0)),
        "sigma": fused.ScheduledGuidance(schedules.SigmaInterval(5.0, low=0.0, high=0.9, outside=1.0)),
        "x0": fused.RuleGuidance(InDomain(APG(5.0, eta=0.0, norm_threshold=1.0))),
        "threshold": fused.DynamicThresholdingGuidance(5.0, quantile=0.5),
    }
    seen = [plain]
    for name, guider in others.items():
        guider.scheduler = wan().scheduler
        guider.inputs = {"negative": {"encoder_hidden_states": drawn(1, TOKENS, WIDTH, seed=9)}}
        got = pictures(wan(), guider)
        assert got.isfinite().all() and not any(torch.equal(got, other) for other in seen), name
        seen.append(got)


def test_what_a_rule_guider_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"inputs: 'negative'.*encoder_hidden_states"):
        pictures(wan(), fused.PerpNegGuidance())
    guider = fused.PerpNegGuidance()
    guider.inputs = {"negative": {"prompt": drawn(1, TOKENS, WIDTH, seed=2)}}
    with pytest.raises(ValueError, match=r"inputs: .*encoder_hidden_states.*prompt"):
        pictures(wan(), guider)
    with pytest.raises(ValueError, match="scheduler"):
        pictures(wan(), fused.RuleGuidance(InDomain(APG(5.0))))


class Joint(torch.nn.Module):
    """What LTX-2's denoiser block calls, with predictions that depend on a pass's inputs and flags."""

    def cache_context(self, name: str) -> Any:
        return contextlib.nullcontext()

    def forward(self, hidden_states: Tensor, audio_hidden_states: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        flags = 0.5 * given["isolate_modalities"] + 0.25 * bool(given["spatio_temporal_guidance_blocks"])
        moved = given["encoder_hidden_states"].mean() + flags
        return torch.sin(hidden_states + moved), torch.cos(audio_hidden_states + moved)


@pytest.mark.parametrize("numerics", ["fp32", "eager"])
def test_video_and_audio_of_ltx2(numerics: str) -> None:
    """diffusers' own denoiser block, which asks both guiders for their passes and runs each once."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    common = {"guidance_rescale": 0.7 if numerics == "fp32" else 0.0}
    video = {"guidance_scale": 3.0, "stg_scale": 1.0, "spatio_temporal_guidance_blocks": [1], **common}
    audio = {"guidance_scale": 7.0, "modality_scale": 3.0, "stop": 0.6, **common}
    kinds = ("connector_prompt_embeds", "connector_audio_prompt_embeds", "connector_attention_mask")
    fields = {kind: drawn(1, 6, 4, seed=3) for kind in kinds}
    fields |= {f"negative_{kind}": drawn(1, 6, 4, seed=4) for kind in kinds}
    fields |= {"num_frames": 9, "height": 64, "width": 64, "frame_rate": 24.0, "motion_speed": 1.0}
    fields |= {"use_cross_timestep": True, "attention_kwargs": None, "denoiser_input_fields": {}}
    fields |= {"num_inference_steps": 4, "audio_scheduler": scheduler}
    for kind, shape in (("", (1, 12, 8)), ("audio_", (1, 5, 8))):
        latents = drawn(*shape, seed=1).double()
        fields |= {f"{kind}latents": latents, f"{kind}latent_model_input": latents}
    results = []
    for cls, options in ((stock.LTX2Guidance, {}), (fused.FusedLTX2Guidance, {"numerics": numerics})):
        components = SimpleNamespace(transformer=Joint(), scheduler=scheduler)
        components.guider, components.audio_guider = cls(**video, **options), cls(**audio, **options)
        components.vae_temporal_compression_ratio, components.vae_spatial_compression_ratio = 8, 32
        for step, timestep in enumerate(scheduler.timesteps):
            state = BlockState(**fields, video_timestep=timestep, audio_timestep=timestep)
            LTX2LoopDenoiser()(components, state, i=step, t=timestep)
            results.append((state.noise_pred_video, state.noise_pred_audio))
    for theirs, ours in zip(results[:4], results[4:], strict=True):
        for expected, got in zip(theirs, ours, strict=True):
            assert expected.dtype == torch.float64 and (numerics == "fp32" or torch.equal(got, expected))
            torch.testing.assert_close(got, expected, rtol=0, atol=2.0**-40)


# --- fuse -------------------------------------------------------------------------------------------------------------


def test_fuse_says_what_it_swapped_and_puts_it_back() -> None:
    pipe = sdxl()
    own, spec = pipe.guider, pipe.get_component_spec("guider")
    with fused.fuse(pipe) as report:
        assert str(report) == "guider: ClassifierFreeGuidance -> FusedClassifierFreeGuidance"
        assert report.swapped == {"guider": (own, pipe.guider)} and not report.kept
        again = fused.fuse(pipe)
        assert not again.swapped and "fused" in again.kept["guider"] and "kept" in str(again)
    assert pipe.guider is own and pipe.get_component_spec("guider").type_hint is spec.type_hint
    report = fused.fuse(pipe)
    chosen = stock.TangentialClassifierFreeGuidance()
    pipe.update_components(guider=chosen)
    report.unfuse()
    assert pipe.guider is chosen, "a guider that was put there since stays"


def test_fuse_takes_a_guider_as_it_is_now() -> None:
    own = stock.ClassifierFreeGuidance(guidance_scale=5.0)
    own.guidance_scale = 3.0
    own.disable()
    made = fused.fuse_guider(own)
    assert made.guidance_scale == 3.0 and made.num_conditions == 1
    made.enable()
    assert made.num_conditions == 2


BY_PLACE: list[tuple[str, tuple[Any, ...]]] = [
    ("ClassifierFreeGuidance", (7.0, 0.5, True, 0.2, 0.8)),
    ("AdaptiveProjectedGuidance", (7.0, -0.25, 3.0, [-1, -2], 0.5, 0.3, True, 0.2, 0.8)),
    ("AdaptiveProjectedMixGuidance", (3.0, 0.5, 8.0, -0.25, 4.0, 0.5, True, 0.2, 0.8, 3)),
    ("ClassifierFreeZeroStarGuidance", (3.0, 2, 0.5, True, 0.2, 0.8)),
    ("TangentialClassifierFreeGuidance", (3.0, 0.5, True, 0.2, 0.8)),
    ("MagnitudeAwareGuidance", (3.0, 4.0, 0.5, True, 0.2, 0.8)),
    ("AutoGuidance", (3.0, [2], None, 0.5, 0.25, True, 0.2, 0.8)),
    ("SkipLayerGuidance", (3.0, 2.0, 0.1, 0.9, [2, 3], None, 0.5, True, 0.2, 0.8)),
    ("PerturbedAttentionGuidance", (3.0, 2.0, 0.1, 0.9, [2, 3], None, 0.5, True, 0.2, 0.8)),
    ("SmoothedEnergyGuidance", (3.0, 2.0, 7.0, 99.0, 0.1, 0.9, [2], None, 0.5, True, 0.2, 0.8)),
    ("LTX2Guidance", (3.0, 1.0, 2.0, 0.7, [29], 0.2, 0.8)),
]
if KORNIA:
    BY_PLACE.append(("FrequencyDecoupledGuidance", ([7.0, 3.0], 0.5, [0.5, 1.0], True, [0.2, 0.1], [0.8, 0.9], "freq")))


def attributes(guider: BaseGuidance) -> dict[str, Any]:
    """What a guider of diffusers keeps of its arguments, but for the config and the steps."""
    transient = ("_internal_dict", "_step", "_num_inference_steps", "_timestep", "momentum_buffer")
    own = ("_state", "_call", "_calls", "_unique", "_placed", "scheduler", "_diffusers_load_id", "dropout")
    given = {name: value for name, value in vars(guider).items() if name not in (*transient, *own)}
    given = {name: value for name, value in given.items() if not name.endswith(("_hook_names", "guidance_layers"))}
    return {name: layers(value) if name.endswith("_config") else value for name, value in given.items()}


def layers(configs: list[Any]) -> list[dict[str, Any]]:
    """Configs of layers, a single number as a list of it."""
    numbers = [[c.indices] if isinstance(c.indices, int) else list(c.indices) for c in configs]
    return [asdict(c) | {"indices": indices} for c, indices in zip(configs, numbers, strict=True)]


LEAST: dict[str, tuple[Any, ...]] = {
    "AutoGuidance": (7.5, [1], None, 1.0),
    "SkipLayerGuidance": (7.5, 2.8, 0.01, 0.2, [1]),
    "PerturbedAttentionGuidance": (7.5, 2.8, 0.01, 0.2, [1]),
    "SmoothedEnergyGuidance": (7.5, 2.8, 9.0, 99.0, 0.0, 1.0, [1]),
}


@pytest.mark.parametrize(("name", "given"), BY_PLACE, ids=[name for name, _ in BY_PLACE])
def test_fuse_keeps_every_argument(name: str, given: tuple[Any, ...]) -> None:
    """Given by place, or set later: the config of diffusers' guider knows of neither."""
    own, default = (getattr(stock, name)(*arguments) for arguments in (given, LEAST.get(name, ())))
    made = fused.fuse_guider(own)
    for guider in (made, type(made).from_config(made.config)):
        kept = attributes(guider)
        assert {key: kept[key] for key in attributes(own)} == attributes(own)
    for key, value in vars(own).items():
        if key != "_internal_dict":
            setattr(default, key, value)
    kept = attributes(fused.fuse_guider(default))
    assert {key: kept[key] for key in attributes(own)} == attributes(own)


def test_fuse_guides_as_a_guider_given_by_place() -> None:
    own = stock.ClassifierFreeGuidance(7.5, 0.0, False, 0.2, 0.8)
    made = fused.fuse_guider(own, numerics="eager")
    for step in range(10):
        predictions = [drawn(1, 4, 8, 8, seed=step), drawn(1, 4, 8, 8, seed=100 + step)]
        for guider in (own, made):
            guider.set_state(step, 10, torch.tensor(0))
        assert own.num_conditions == made.num_conditions == (2 if 2 <= step < 8 else 1)
        theirs, ours = (guider.forward(*predictions[: own.num_conditions]).pred for guider in (own, made))
        assert torch.equal(ours, theirs)


def test_guiders_survive_saving(tmp_path: Path) -> None:
    pipe = wan()
    saved: list[BaseGuidance] = [
        stock.ClassifierFreeGuidance(3.0, 0.0, False, 0.2),
        fused.FusedClassifierFreeGuidance(guidance_scale=schedules.Linear(1.0, 5.0), stop=0.8),
        fused.RuleGuidance(APG(5.0, 0.25), start=0.1),
    ]
    for i, guider in enumerate(saved):
        pipe.update_components(guider=guider)
        fused.save_guiders(pipe, tmp_path / str(i))
        pipe.update_components(guider=stock.TangentialClassifierFreeGuidance())
        fused.load_guiders(pipe, tmp_path / str(i))
        assert type(pipe.guider) is type(guider) and pipe.guider is not guider
        assert attributes(pipe.guider) | {"_state": 0, "scheduler": 0} == attributes(guider) | {
            "_state": 0,
            "scheduler": 0,
        }
    with pytest.raises(FileNotFoundError):
        fused.load_guiders(pipe, tmp_path / "none")
    with pytest.raises(ValueError, match="pipe: has no guider"):
        fused.save_guiders(WanVaeDecoderStep().init_pipeline(), tmp_path)


def test_fuse_by_a_rule() -> None:
    with fused.fuse(wan(), rule=CFG(5.0), stop=0.6) as report:
        assert str(report) == "guider: ClassifierFreeGuidance -> RuleGuidance"
        assert wan().guider.scheduler is wan().scheduler and wan().guider.config["stop"] == 0.6


def test_fuse_names_what_does_not_fit() -> None:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(sample_size=8, norm_num_groups=2, **blocks)
    with pytest.raises(ValueError, match=r"pipe: .*DDPMPipeline.*guided"):
        fused.fuse(DDPMPipeline(unet, DDIMScheduler()))
    with pytest.raises(ValueError, match="pipe: has no guider"):
        fused.fuse(WanVaeDecoderStep().init_pipeline())
    with pytest.raises(TypeError, match=r"start: .*rule"):
        fused.fuse(wan(), start=0.5)
    wan().update_components(guider=stock.AdaptiveProjectedGuidance())
    with pytest.raises(ValueError, match=r"numerics: .*AdaptiveProjectedGuidance"):
        fused.fuse(wan(), numerics="eager")
    with pytest.raises(TypeError, match="guider: expected one of"):
        fused.fuse_guider(fused.FusedClassifierFreeGuidance())
