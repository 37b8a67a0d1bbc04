"""Tiny teachers: a network of each family with random weights, and the tasks made of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, UNet2DConditionModel

from fastcfg import CFG, GuidedDenoiser, Rule
from fastcfg.demo.distillation import demo_task
from fastcfg.demo.model import UNet, UNetConfig
from fastcfg.distill import Network, Task
from fastcfg.files import save_tensors


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Zero-initialised layers would hide what reaches them."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the demo's U-Net at a size where a step takes milliseconds."""
    torch.manual_seed(0)
    network = randomised(UNet(UNetConfig(width=8, embedding=16)))
    path = tmp_path_factory.mktemp("tiny") / "denoiser.safetensors"
    save_tensors(path, network.state_dict(), {"model": {"width": 8, "embedding": 16}})
    return path


@pytest.fixture
def tiny_task(tiny_checkpoint: Path) -> Callable[..., Task]:
    """``tiny_task(rule)``: the demo's task on the tiny network, a fresh one each time."""

    def make(rule: Rule | None = None) -> Task:
        return demo_task(rule or CFG(4.0), checkpoint=tiny_checkpoint)

    return make


@pytest.fixture
def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return randomised(
        UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=2,
            norm_num_groups=4,
        )
    )


@pytest.fixture
def flux() -> torch.nn.Module:
    torch.manual_seed(0)
    return randomised(
        FluxTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=6,
            pooled_projection_dim=5,
            axes_dims_rope=(2, 2, 4),
        )
    )


@pytest.fixture
def unet_task(unet: torch.nn.Module) -> Task:
    """Stable Diffusion's kind: latents ``[B, 4, 8, 8]``, text states ``[B, 5, 8]``, zeros for no text."""

    def noise(count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(count, 4, 8, 8, generator=generator)

    def conditions(count: int, generator: torch.Generator) -> dict[str, dict[str, torch.Tensor]]:
        text = torch.randn(count, 5, 8, generator=generator)
        return {"uncond": {"encoder_hidden_states": 0 * text}, "cond": {"encoder_hidden_states": text}}

    return Task(GuidedDenoiser(unet, CFG(4.0)), DDIMScheduler(), noise, conditions)


@pytest.fixture
def flux_task(flux: torch.nn.Module) -> Task:
    """Flux's kind: packed tokens ``[B, 9, 4]``, text states and pooled text, flow matching."""
    ids = {"txt_ids": torch.zeros(5, 3), "img_ids": torch.cartesian_prod(torch.zeros(1), *[torch.arange(3.0)] * 2)}

    def noise(count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(count, 9, 4, generator=generator)

    def conditions(count: int, generator: torch.Generator) -> dict[str, dict[str, torch.Tensor]]:
        text, pooled = torch.randn(count, 5, 6, generator=generator), torch.randn(count, 5, generator=generator)
        cond = {"encoder_hidden_states": text, "pooled_projections": pooled}
        return {"uncond": {name: 0 * value for name, value in cond.items()} | ids, "cond": cond | ids}

    return Task(GuidedDenoiser(Network(flux), CFG(4.0)), FlowMatchEulerDiscreteScheduler(), noise, conditions)
