"""Pipelines of diffusers around small denoisers with random weights, and how each is called: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .export_models import build

__all__ = ["CLASSIC", "MODULAR", "Subject"]

TOKENS, WIDTH = 8, 16
_TWO_TEXTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


@dataclass(frozen=True)
class Subject:
    """A pipeline and how it is called.

    Attributes:
        make: makes it; call: runs it from starting noise, with further arguments, and returns the last latent.
        denoiser: the component that runs the passes.
        shape: of the noise; scheduler: its class.
    """

    make: Callable[[], Any]
    call: Callable[[Any, Tensor, Mapping[str, Any]], Tensor]
    denoiser: str
    shape: tuple[int, ...]
    scheduler: str


def _drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _prompts(pipe: Any, *, pooled: bool) -> dict[str, Tensor]:
    found = {
        "prompt_embeds": _drawn(1, TOKENS, WIDTH, seed=1),
        "negative_prompt_embeds": _drawn(1, TOKENS, WIDTH, seed=2),
    }
    if pooled:
        found["pooled_prompt_embeds"] = _drawn(1, WIDTH, seed=3)
        found["negative_pooled_prompt_embeds"] = _drawn(1, WIDTH, seed=4)
    return {name: tensor.to(pipe.device) for name, tensor in found.items()}


def _classic(pooled: bool, **sizes: int) -> Callable[[Any, Tensor, Mapping[str, Any]], Tensor]:
    def call(pipe: Any, noise: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        given = {"latents": noise.clone(), "output_type": "latent", "return_dict": False, **sizes}
        latent: Tensor = pipe(**given, **_prompts(pipe, pooled=pooled), **arguments)[0]
        return latent

    return call


def _vae() -> Any:
    """For the size of its latents alone: one eighth."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=[4] * 4, down_block_types=["DownEncoderBlock2D"] * 4, norm_num_groups=2)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    # Attention at half the size alone, as in the real one.
    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
    }
    unet, scheduler = build("sdxl", **blocks), EulerDiscreteScheduler()
    return _quiet(StableDiffusionXLPipeline(vae=_vae(), unet=unet, scheduler=scheduler, **dict.fromkeys(_TWO_TEXTS)))


def _flow_pipeline(cls: str, transformer: str, *encoders: str) -> Any:
    import diffusers

    parts = dict.fromkeys(("vae", *encoders))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return _quiet(getattr(diffusers, cls)(transformer=build(transformer), scheduler=scheduler, **parts))


def _modular_wan() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.modular_pipelines import SequentialPipelineBlocks
    from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep

    blocks = SequentialPipelineBlocks.from_blocks_dict({"denoise": WanCoreDenoiseStep})
    _hush(blocks)
    pipe = blocks.init_pipeline()
    pipe.update_components(transformer=build("wan"), scheduler=FlowMatchEulerDiscreteScheduler())
    return pipe


def _hush(block: Any) -> None:
    """No progress bars: a loop of a modular pipeline has its own."""
    if hasattr(block, "set_progress_bar_config"):
        block.set_progress_bar_config(disable=True)
    for inner in getattr(block, "sub_blocks", {}).values():
        _hush(inner)


def _call_modular_wan(pipe: Any, noise: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    sizes = {"height": 8 * noise.shape[3], "width": 8 * noise.shape[4], "num_frames": 4 * noise.shape[2] - 3}
    given = {"latents": noise.clone(), **sizes, **_prompts(pipe, pooled=False), "output": "latents"}
    return torch.as_tensor(pipe(**given, **arguments))


_VIDEO = (1, 4, 5, 32, 32)
_FLOW = "FlowMatchEulerDiscrete"
CLASSIC: Mapping[str, Subject] = {
    "SDXL": Subject(_sdxl, _classic(True, height=256, width=256), "unet", (1, 4, 32, 32), "EulerDiscrete"),
    "SDXL, 512 px": Subject(_sdxl, _classic(True, height=512, width=512), "unet", (1, 4, 64, 64), "EulerDiscrete"),
    "Flux": Subject(
        lambda: _flow_pipeline("FluxPipeline", "flux", *_TWO_TEXTS),
        _classic(True, height=512, width=512),
        "transformer",
        (1, 1024, 16),
        _FLOW,
    ),
    "Wan": Subject(
        lambda: _flow_pipeline("WanPipeline", "wan", "text_encoder", "tokenizer"),
        _classic(False, height=256, width=256, num_frames=17),
        "transformer",
        _VIDEO,
        _FLOW,
    ),
    "QwenImage": Subject(
        lambda: _flow_pipeline("QwenImagePipeline", "qwen", "text_encoder", "tokenizer"),
        _classic(False, height=512, width=512),
        "transformer",
        (1, 1024, 64),
        _FLOW,
    ),
}
MODULAR: Mapping[str, Subject] = {
    "Wan": Subject(_modular_wan, _call_modular_wan, "transformer", _VIDEO, _FLOW),
}
