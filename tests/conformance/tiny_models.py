"""diffusers' own pipelines from tiny configs and random weights: no text encoder, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as d
import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

BATCH, TOKENS, WIDTH = 2, 6, 16


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def embeds(seed: int, width: int = WIDTH) -> Tensor:
    return drawn(BATCH, TOKENS, width, seed=seed)


def nothing(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


# --- Models of several pipelines --------------------------------------------------------------------------------------

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


# --- Stable Diffusion and kin -----------------------------------------------------------------------------------------


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


def sd3(cls: Any = d.StableDiffusion3Pipeline) -> Any:
    transformer = d.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
    )
    encoders = nothing(*(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")))
    return cls(transformer=transformer, scheduler=flow(), vae=vae(), **encoders)


def pooled_negative() -> dict[str, Any]:
    return {"encoder_hidden_states": embeds(3), "pooled_projections": drawn(BATCH, WIDTH, seed=7)}


# --- Transformers -----------------------------------------------------------------------------------------------------


def pixart() -> Any:
    transformer = d.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=WIDTH,
        use_additional_conditions=False,
        norm_num_groups=2,
    )
    return d.PixArtAlphaPipeline(transformer=transformer, vae=vae(), scheduler=d.DPMSolverMultistepScheduler(), **TEXT)


def masked() -> dict[str, Any]:
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    return {**prompts(), "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}


def flux(cls: Any = d.FluxPipeline) -> Any:
    transformer = d.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    encoders = nothing(*(f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2")))
    return cls(transformer=transformer, scheduler=flow(), vae=vae(), **encoders)


def wan(stages: int = 1) -> Any:
    transformers = [
        d.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=16,
            ffn_dim=16,
            num_layers=2,
            rope_max_seq_len=16,
        )
        for _ in range(stages)
    ]
    both = {"transformer": transformers[0], "transformer_2": transformers[1] if stages > 1 else None}
    return d.WanPipeline(**both, vae=None, scheduler=flow(), boundary_ratio=0.9 if stages > 1 else None, **TEXT)


def ltx(cls: Any = d.LTXPipeline) -> Any:
    transformer = d.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=WIDTH,
    )
    autoencoder = d.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    return cls(transformer=transformer, vae=autoencoder, scheduler=flow(), **TEXT)


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


def video(size: int = 64, frames: int = 9) -> dict[str, int]:
    return {"height": size, "width": size, "num_frames": frames}


def qwen() -> Any:
    transformer = d.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return d.QwenImagePipeline(transformer=transformer, vae=None, scheduler=flow(), **TEXT)


def with_masks() -> dict[str, Any]:
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    return {**prompts(), "prompt_embeds_mask": mask, "negative_prompt_embeds_mask": mask}


def lumina2() -> Any:
    transformer = d.Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(32, 32, 32),
        cap_feat_dim=WIDTH,
    )
    return d.Lumina2Pipeline(transformer=transformer, vae=vae(), scheduler=flow(), **TEXT)


def z_image() -> Any:
    transformer = d.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[128, 32, 32],
    )
    return d.ZImagePipeline(transformer=transformer, vae=vae(), scheduler=flow(), **TEXT)


def lists() -> dict[str, Any]:
    return {"prompt_embeds": list(embeds(1)), "negative_prompt_embeds": list(embeds(2))}


def dit() -> Any:
    transformer = d.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=1000,
        norm_num_groups=2,
    )
    return d.DiTPipeline(transformer=transformer, vae=vae(), scheduler=d.DDIMScheduler())


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


def cogvideox() -> Any:
    transformer = d.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=TOKENS,
    )
    return d.CogVideoXPipeline(transformer=transformer, vae=None, scheduler=d.CogVideoXDDIMScheduler(), **TEXT)
