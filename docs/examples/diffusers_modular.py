"""A modular pipeline of diffusers: ``fuse`` puts fused guiders in the place of its own, or any rule."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.guiders import AdaptiveProjectedGuidance
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep

from fastcfg import CFG, Rescale
from fastcfg.adapters.diffusers import fuse

torch.manual_seed(0)  # A tiny pipeline of random weights; yours comes from ``from_pretrained``.
pipe = SequentialPipelineBlocks.from_blocks_dict({"denoise": WanCoreDenoiseStep}).init_pipeline()
pipe.update_components(
    transformer=WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=16, freq_dim=16,
        ffn_dim=16, num_layers=1, rope_max_seq_len=16,
    ),
    scheduler=FlowMatchEulerDiscreteScheduler(),
    guider=AdaptiveProjectedGuidance(guidance_scale=6.0, adaptive_projected_guidance_momentum=-0.5),
)  # fmt: skip
prompt, negative = torch.randn(2, 1, 8, 16)


def video() -> torch.Tensor:
    """Latents of five frames."""
    return pipe(
        prompt_embeds=prompt, negative_prompt_embeds=negative, height=32, width=32, num_frames=5,
        num_inference_steps=3, generator=torch.Generator().manual_seed(0), output="latents",
    )  # fmt: skip


stock = video()
report = fuse(pipe)
print(report)
print(f"beside diffusers' own: {float((video() - stock).abs().max()):.0e}")
report.unfuse()
with fuse(pipe, rule=Rescale(CFG(6.0), phi=0.7)) as swapped:
    print(swapped)
    video()
print("as before:", torch.equal(video(), stock))
