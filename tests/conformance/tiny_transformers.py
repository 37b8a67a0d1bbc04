"""diffusers' pipelines of images with a transformer, from tiny configs and random weights."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch

from .tiny_models import BATCH, SAFE, TEXT, TOKENS, WIDTH, drawn, embeds, flow, nothing, prompts, vae


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


def hunyuandit() -> Any:
    transformer = d.HunyuanDiT2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=4,
        hidden_size=24,
        text_len=TOKENS,
        text_len_t5=TOKENS,
    )
    others = nothing("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return d.HunyuanDiTPipeline(transformer=transformer, vae=vae(), scheduler=d.DDPMScheduler(), **others, **SAFE)


def two_texts() -> dict[str, Any]:
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    second = {"prompt_embeds_2": embeds(8), "negative_prompt_embeds_2": embeds(9)}
    return {**masked(), **second, "prompt_attention_mask_2": mask, "negative_prompt_attention_mask_2": mask}


def chroma() -> Any:
    transformer = d.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=16,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return d.ChromaPipeline(transformer=transformer, vae=vae(), scheduler=flow(), **TEXT)


def cogview4() -> Any:
    transformer = d.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
        pos_embed_max_size=8,
        rope_axes_dim=(4, 4),
    )
    return d.CogView4Pipeline(transformer=transformer, vae=vae(), scheduler=flow(), **TEXT)


def sana() -> Any:
    transformer = d.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=WIDTH,
        sample_size=8,
    )
    return d.SanaPipeline(transformer=transformer, vae=None, scheduler=flow(), **TEXT)


def auraflow() -> Any:
    transformer = d.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=WIDTH,
        pos_embed_max_size=16,
    )
    return d.AuraFlowPipeline(transformer=transformer, vae=vae(), scheduler=flow(), **TEXT)
