"""diffusers' pipelines with a U-Net, from tiny configs and random weights, and what calls of tiny pipelines share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as d
import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

BATCH, TOKENS, WIDTH = 2, 6, 16


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def embeds(seed: int, width: int = WIDTH) -> Tensor:
    return drawn(BATCH, TOKENS, width, seed=seed)


def nothing(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}


def unet(**config: Any) -> d.UNet2DConditionModel:
    up = ("CrossAttnUpBlock2D", "UpBlock2D")
    return d.UNet2DConditionModel(**{"sample_size": 8, "up_block_types": up, **BLOCKS, **config})


def vae(channels: int = 4) -> d.AutoencoderKL:
    return d.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[4, 4],
        latent_channels=channels,
        norm_num_groups=2,
        shift_factor=0.0,
    )


TEXT = nothing("text_encoder", "tokenizer")
SAFE = {**nothing("safety_checker", "feature_extractor"), "requires_safety_checker": False}


def euler() -> d.EulerDiscreteScheduler:
    return d.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1)


def flow() -> d.FlowMatchEulerDiscreteScheduler:
    return d.FlowMatchEulerDiscreteScheduler()


def prompts() -> dict[str, Any]:
    return {"prompt_embeds": embeds(1), "negative_prompt_embeds": embeds(2)}


def square(size: int = 16) -> dict[str, int]:
    return {"height": size, "width": size}


def picture(size: int = 16) -> Tensor:
    return drawn(BATCH, 3, size, size, seed=4).clamp(-1, 1)


def stable_diffusion(cls: Any = d.StableDiffusionPipeline, scheduler: Callable[[], Any] = euler, **others: Any) -> Any:
    return cls(**{"unet": unet(), "vae": vae(), "scheduler": scheduler(), **TEXT, **SAFE, **others})


def controlnet() -> d.ControlNetModel:
    return d.ControlNetModel(**BLOCKS, conditioning_embedding_out_channels=(4, 4))


def sdxl(cls: Any = d.StableDiffusionXLPipeline, **others: Any) -> Any:
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + WIDTH,
    }
    encoders = nothing("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return cls(**{"unet": unet(**added), "vae": vae(), "scheduler": euler(), **encoders, **others})


def pooled() -> dict[str, Any]:
    return {
        **prompts(),
        "pooled_prompt_embeds": drawn(BATCH, WIDTH, seed=5),
        "negative_pooled_prompt_embeds": drawn(BATCH, WIDTH, seed=6),
    }


def svd() -> Any:
    model = d.UNetSpatioTemporalConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        cross_attention_dim=WIDTH,
        num_attention_heads=(2, 4),
        num_frames=3,
    )
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            projection_dim=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            intermediate_size=16,
            patch_size=8,
        )
    )
    return d.StableVideoDiffusionPipeline(
        vae=d.AutoencoderKLTemporalDecoder(block_out_channels=(32,)),
        image_encoder=encoder,
        unet=model,
        scheduler=d.EulerDiscreteScheduler(prediction_type="v_prediction"),
        feature_extractor=CLIPImageProcessor(crop_size=16, size=16),
    )


def kandinsky() -> Any:
    model = unet(
        out_channels=8,
        cross_attention_dim=WIDTH,
        addition_embed_type="image",
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
    )
    movq = d.VQModel(block_out_channels=[8], norm_num_groups=2, num_vq_embeddings=4, vq_embed_dim=4)
    scheduler = d.DDPMScheduler(variance_type="learned_range")
    return d.KandinskyV22Pipeline(unet=model, scheduler=scheduler, movq=movq)


def animatediff() -> Any:
    model = d.UNet2DConditionModel(
        sample_size=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **{**BLOCKS, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "block_out_channels": (8, 8)},
    )
    motion = d.MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    scheduler = d.DDIMScheduler(beta_schedule="linear", clip_sample=False)
    return d.AnimateDiffPipeline(vae=vae(), unet=model, motion_adapter=motion, scheduler=scheduler, **TEXT)


def cascade() -> Any:
    prior = d.StableCascadeUNet(
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        switch_level=(False,),
        clip_image_in_channels=WIDTH,
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
    )
    encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=WIDTH,
            projection_dim=WIDTH,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=8,
        )
    )  # Only its dtype is asked for.
    others = nothing("tokenizer", "feature_extractor", "image_encoder")
    scheduler = d.DDPMWuerstchenScheduler()
    return d.StableCascadePriorPipeline(prior=prior, text_encoder=encoder, scheduler=scheduler, **others)
