"""Tiny pipelines of diffusers by name, and how each is called: two steps, two samples, embeddings for prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers as d
import torch
from torch import Tensor, nn

from .tiny_models import (
    BATCH,
    WIDTH,
    animatediff,
    cascade,
    controlnet,
    drawn,
    embeds,
    kandinsky,
    picture,
    pooled,
    prompts,
    sdxl,
    square,
    stable_diffusion,
    svd,
    unet,
)
from .tiny_transformers import (
    auraflow,
    chroma,
    cogview4,
    dit,
    flux,
    hunyuandit,
    lists,
    lumina2,
    masked,
    pixart,
    pooled_negative,
    qwen,
    sana,
    sd3,
    two_texts,
    with_masks,
    z_image,
)
from .tiny_videos import cogvideox, hunyuan_video, latte, ltx, video, wan

STEPS = 2

Inputs = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class TinyPipeline:
    """A pipeline and how it is called.

    Attributes:
        build: makes it; inputs: its arguments but guidance, seed and steps.
        switch: argument that turns its guidance on; own: its own guidance's other arguments.
        negative: the denoiser's arguments of a third condition.
        width: of the output's latents, in the name of the argument that asks for latents.
    """

    name: str
    build: Callable[[], Any]
    inputs: Inputs
    negative: Inputs = field(default=lambda: {"encoder_hidden_states": embeds(3)})
    switch: str = "guidance_scale"
    output: dict[str, Any] = field(default_factory=lambda: {"output_type": "latent"})

    def run(self, scale: float = 5.0, **others: Any) -> Tensor:
        """Latents of a run with a fixed seed."""
        arguments = {"num_inference_steps": STEPS, self.switch: scale, **self.output, **self.inputs(), **others}
        generator = torch.Generator().manual_seed(0)
        return torch.as_tensor(made(self.name)(generator=generator, return_dict=False, **arguments)[0])

    def __str__(self) -> str:
        return self.name


@cache
def made(name: str) -> Any:
    """The pipeline of a case; one object for all tests."""
    torch.manual_seed(0)
    pipe = CASES[name].build()
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
            for parameter in component.parameters():
                if not parameter.any():  # What is trained from zero would hide its inputs.
                    parameter.normal_(0.0, 0.05)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def as_bools(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.bool() if name.endswith("mask") else value for name, value in inputs.items()}


def as_bfloat16(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.bfloat16() if name.endswith("embeds") else value for name, value in inputs.items()}


CASES = {
    case.name: case
    for case in (
        TinyPipeline("sd", stable_diffusion, prompts),
        TinyPipeline("sd_ddim", lambda: stable_diffusion(scheduler=d.DDIMScheduler), prompts),
        TinyPipeline(
            "sd_img2img",
            lambda: stable_diffusion(d.StableDiffusionImg2ImgPipeline),
            lambda: {**prompts(), "image": picture(), "strength": 1.0},
        ),
        TinyPipeline(
            "sd_inpaint",
            lambda: stable_diffusion(d.StableDiffusionInpaintPipeline, unet=unet(in_channels=9)),
            lambda: {**prompts(), "image": picture(), "mask_image": torch.ones(BATCH, 1, 16, 16), **square()},
        ),
        TinyPipeline(
            "sd_controlnet",
            lambda: stable_diffusion(d.StableDiffusionControlNetPipeline, controlnet=controlnet()),
            lambda: {**prompts(), "image": picture()},
        ),
        TinyPipeline(
            "sd_pag",
            lambda: stable_diffusion(d.StableDiffusionPAGPipeline, pag_applied_layers=["mid"]),
            lambda: {**prompts(), "pag_scale": 2.0},
        ),
        TinyPipeline(
            "ip2p",
            lambda: stable_diffusion(d.StableDiffusionInstructPix2PixPipeline, unet=unet(in_channels=8)),
            lambda: {**prompts(), "image": picture(), "image_guidance_scale": 1.5},
        ),
        TinyPipeline(
            "sdxl",
            sdxl,
            pooled,
            lambda: {
                "encoder_hidden_states": embeds(3),
                "added_cond_kwargs": {"text_embeds": drawn(BATCH, WIDTH, seed=7)},
            },
        ),
        TinyPipeline("sd3", sd3, pooled, pooled_negative),
        TinyPipeline(
            "sd3_img2img",
            lambda: sd3(d.StableDiffusion3Img2ImgPipeline),
            lambda: {**pooled(), "image": picture(), "strength": 1.0, **square()},
            pooled_negative,
        ),
        TinyPipeline(
            "pixart",
            pixart,
            lambda: {**masked(), **square(), "negative_prompt": None, "use_resolution_binning": False},
        ),
        TinyPipeline("flux", flux, lambda: {**pooled(), **square()}, pooled_negative, "true_cfg_scale"),
        TinyPipeline(
            "flux_kontext",
            lambda: flux(d.FluxKontextPipeline),
            lambda: {**pooled(), **square(), "image": picture(), "_auto_resize": False, "max_area": 256},
            pooled_negative,
            "true_cfg_scale",
        ),
        TinyPipeline("wan", wan, lambda: {**prompts(), **video(32, 5)}),
        TinyPipeline("wan_two_stages", lambda: wan(2), lambda: {**prompts(), **video(32, 5)}),
        TinyPipeline("ltx", ltx, lambda: {**masked(), **video()}),
        TinyPipeline(
            "ltx_image",
            lambda: ltx(d.LTXImageToVideoPipeline),
            lambda: {**masked(), **video(), "image": picture(64)},
        ),
        TinyPipeline("qwen", qwen, lambda: {**with_masks(), **square(32)}, switch="true_cfg_scale"),
        TinyPipeline("lumina2", lumina2, lambda: {**masked(), **square(32)}),
        TinyPipeline("z_image", z_image, lambda: {**lists(), **square()}, lambda: {"cap_feats": list(embeds(3))}),
        TinyPipeline(
            "dit",
            dit,
            lambda: {"class_labels": [1, 2]},
            lambda: {"class_labels": torch.tensor([3, 4])},
            output={"output_type": "np"},
        ),
        TinyPipeline(
            "kandinsky",
            kandinsky,
            lambda: {
                "image_embeds": drawn(2, WIDTH, seed=1),
                "negative_image_embeds": drawn(2, WIDTH, seed=2),
                **square(8),
            },
            lambda: {"added_cond_kwargs": {"image_embeds": drawn(2, WIDTH, seed=3)}},
        ),
        TinyPipeline(
            "svd",
            svd,
            lambda: {"image": picture().clamp(0, 1), "min_guidance_scale": 1.0, **video(16, 3)},
            switch="max_guidance_scale",
        ),
        TinyPipeline("animatediff", animatediff, lambda: {**prompts(), **video(16, 3)}),
        TinyPipeline(
            "cascade",
            cascade,
            lambda: {
                **prompts(),
                "prompt_embeds_pooled": drawn(BATCH, 1, WIDTH, seed=5),
                "negative_prompt_embeds_pooled": drawn(BATCH, 1, WIDTH, seed=6),
                **square(128),
            },
            output={"output_type": "pt"},
        ),
        TinyPipeline("hunyuandit", hunyuandit, lambda: {**two_texts(), **square(), "use_resolution_binning": False}),
        TinyPipeline("chroma", chroma, lambda: {**as_bools(masked()), **square()}),
        TinyPipeline("cogview4", cogview4, lambda: {**prompts(), **square()}),
        TinyPipeline(
            "hunyuan_video", hunyuan_video, lambda: {**masked(), **pooled(), **video(16, 5)}, switch="true_cfg_scale"
        ),
        TinyPipeline(
            "sana",
            sana,
            lambda: {**masked(), **square(64), "negative_prompt": None, "use_resolution_binning": False},
        ),
        TinyPipeline("auraflow", auraflow, lambda: {**masked(), **square()}),
        TinyPipeline(
            "latte",
            latte,
            lambda: {**prompts(), **square(), "video_length": 2, "negative_prompt": None, "clean_caption": False},
        ),
        TinyPipeline("wan_bf16", lambda: wan().to(torch.bfloat16), lambda: as_bfloat16({**prompts(), **video(32, 5)})),
        TinyPipeline("ltx_bf16", lambda: ltx().to(torch.bfloat16), lambda: as_bfloat16({**masked(), **video()})),
        TinyPipeline("cogvideox", cogvideox, lambda: {**prompts(), **video(16, 9)}),
    )
}
