"""diffusers' modular pipelines from tiny configs and random weights: text to pictures, no downloads, three steps."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers as d
import torch
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.modular_pipelines import ModularPipeline, SequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks
from diffusers.modular_pipelines.wan.decoders import WanVaeDecoderStep
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

STEPS = 3
WORDS = ("<pad>", "</s>", "<unk>", "<s>", "red", "blue", "cat", "dog")
TOKENS, WIDTH = 8, 16


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def sdxl() -> ModularPipeline:
    """Stable Diffusion XL with its text encoders."""
    torch.manual_seed(0)
    unet = d.UNet2DConditionModel(
        sample_size=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), block_out_channels=(8, 16),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, norm_num_groups=2,
        cross_attention_dim=WIDTH, attention_head_dim=4, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH // 2,
    )  # fmt: skip
    vae = d.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[4, 4], latent_channels=4, norm_num_groups=2,
    )  # fmt: skip
    config = CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH // 2, intermediate_size=WIDTH, num_attention_heads=2,
        num_hidden_layers=2, max_position_embeddings=TOKENS, projection_dim=WIDTH // 2,
        pad_token_id=0, eos_token_id=1, bos_token_id=3,
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>",
        model_max_length=TOKENS,
    )  # fmt: skip
    return _made(
        StableDiffusionXLAutoBlocks(),
        unet=unet, vae=vae, text_encoder=CLIPTextModel(config), text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=d.EulerDiscreteScheduler(),
    )  # fmt: skip


@cache
def wan() -> ModularPipeline:
    """Wan from prompt embeddings, a video in, a video out."""
    torch.manual_seed(0)
    transformer = d.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=WIDTH, freq_dim=16,
        ffn_dim=16, num_layers=2, rope_max_seq_len=16,
    )  # fmt: skip
    vae = d.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    blocks = SequentialPipelineBlocks.from_blocks_dict({"denoise": WanCoreDenoiseStep, "decode": WanVaeDecoderStep})
    return _made(blocks, transformer=transformer, vae=vae, scheduler=d.FlowMatchEulerDiscreteScheduler())


def _made(blocks: Any, **components: Any) -> ModularPipeline:
    pipe = blocks.init_pipeline()
    for component in components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
            for name, parameter in component.named_parameters():
                if "attn2" in name:  # Random weights hardly hear the prompt.
                    parameter.mul_(16.0)
    pipe.update_components(**components)
    pipe.set_progress_bar_config(disable=True)
    for block in getattr(pipe.blocks, "sub_blocks", {}).values():
        _quiet(block)
    return pipe


def _quiet(block: Any) -> None:
    """No progress bars: a loop has its own."""
    if hasattr(block, "set_progress_bar_config"):
        block.set_progress_bar_config(disable=True)
    for inner in getattr(block, "sub_blocks", {}).values():
        _quiet(inner)


def pictures(pipe: ModularPipeline, guider: BaseGuidance | None = None, **given: Any) -> Tensor:
    """What a run with a fixed seed gives, its guider replaced first."""
    if guider is not None:
        pipe.update_components(guider=guider)
    common = {"num_inference_steps": STEPS, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    if pipe is wan():
        embeds = {
            "prompt_embeds": drawn(1, TOKENS, WIDTH, seed=1),
            "negative_prompt_embeds": drawn(1, TOKENS, WIDTH, seed=2),
        }
        arguments = {"height": 32, "width": 32, "num_frames": 5, **embeds, "output": "videos"}
    else:
        arguments = {"prompt": "red cat", "negative_prompt": "blue", "height": 16, "width": 16, "output": "images"}
    return torch.as_tensor(pipe(**{**common, **arguments, **given}))
