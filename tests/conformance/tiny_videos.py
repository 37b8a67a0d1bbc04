"""diffusers' pipelines of videos with a transformer, from tiny configs and random weights."""

from __future__ import annotations

from typing import Any

import diffusers as d

from .tiny_models import TEXT, TOKENS, WIDTH, flow, nothing, vae


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


def video(size: int = 64, frames: int = 9) -> dict[str, int]:
    return {"height": size, "width": size, "num_frames": frames}


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


def hunyuan_video() -> Any:
    transformer = d.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    others = nothing("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return d.HunyuanVideoPipeline(transformer=transformer, scheduler=flow(), **others)


def latte() -> Any:
    transformer = d.LatteTransformer3DModel(
        sample_size=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=WIDTH,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        attention_bias=True,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=2,
    )
    return d.LattePipeline(transformer=transformer, vae=vae(), scheduler=d.DDIMScheduler(), **TEXT)


def hunyuan_video_15(guider: Any) -> Any:
    """A classic pipeline whose guidance is a guider component."""
    transformer = d.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=4,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
    )
    autoencoder = d.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    others = nothing("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return d.HunyuanVideo15Pipeline(transformer=transformer, vae=autoencoder, scheduler=flow(), guider=guider, **others)
