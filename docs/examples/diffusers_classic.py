"""A classic pipeline of diffusers, guided by any rule inside a with block."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from fastcfg import CFG, NormCap, PerpNeg
from fastcfg.adapters.diffusers import guided

torch.manual_seed(0)  # A tiny pipeline of random weights; yours comes from ``from_pretrained``.
pipe = StableDiffusionPipeline(
    unet=UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=16,
        attention_head_dim=4,
    ),
    vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=4),
    scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
    requires_safety_checker=False,
)
pipe.set_progress_bar_config(disable=True)
prompt, empty, negative = torch.randn(3, 1, 6, 16)


def images() -> torch.Tensor:
    """A call as ever; its own guidance is on, so that both passes are run."""
    call = pipe(
        prompt_embeds=prompt, negative_prompt_embeds=empty, guidance_scale=7.5, num_inference_steps=4,
        height=8, width=8, output_type="latent", generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return call.images


stock = images()
with guided(pipe, CFG(7.5)):
    print(f"CFG(7.5) beside the pipeline's own: {float((images() - stock).abs().max()):.0e}")
with guided(pipe, NormCap(CFG(7.5), cap=1.0)):
    capped = images()
with guided(pipe, PerpNeg(7.5, (1.0,)), conditions={"negative": {"encoder_hidden_states": negative}}):
    perp_neg = images()
print("other rules change it:", not torch.equal(capped, stock), not torch.equal(perp_neg, stock))
print("nothing is left behind:", torch.equal(images(), stock))
