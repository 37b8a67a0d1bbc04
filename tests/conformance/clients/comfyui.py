"""ComfyUI from a checkout, and tiny models for its sampling code.

``COMFYUI_PATH`` names the checkout and ``COMFYUI_DEPS`` a folder with further packages that it imports (made by
``pip install --no-deps --target DIR torchsde trampoline einops av aiohttp …``), if they are not installed.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .stubs import stand_ins

__all__ = ["WHY", "Net", "conditioning", "load", "patcher", "pattern", "sample", "unet", "wan"]

_ROOT = os.environ.get("COMFYUI_PATH")
WHY = None if _ROOT else "COMFYUI_PATH names no checkout of ComfyUI"

_NODES = "perpneg apg cfg tcfg model_advanced lumina2 slg pag custom_sampler eps mahiro fresca"


@cache
def load() -> SimpleNamespace:
    """ComfyUI's modules."""
    root = Path(str(_ROOT))
    if not (root / "comfy" / "samplers.py").is_file():
        raise FileNotFoundError(f"COMFYUI_PATH: expected a checkout of ComfyUI, got {root}")
    for name in [name for name in sys.modules if name.split(".")[0] in ("comfy", "comfy_api")]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    if deps := os.environ.get("COMFYUI_DEPS"):
        sys.path.append(deps)
    with stand_ins(["torchvision", "torchaudio"]):
        import_module("comfy.cli_args").args.cpu = True
        found = {name: import_module(f"comfy.{name}") for name in ("samplers", "sample", "model_base", "model_patcher")}
        found |= {name: import_module(f"comfy.{name}") for name in ("supported_models", "model_sampling")}
        found |= {name: import_module(f"comfy_extras.nodes_{name}") for name in _NODES.split()}
        found |= {name: import_module(name) for name in ("nodes", "execution")}
        found |= {"api": import_module("comfy_api.latest")}
    return SimpleNamespace(**found)


class Net(torch.nn.Module):
    """A network of any number of dimensions: elementwise, with coefficients from the context's first token."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.in_channels = channels
        self.dtype = torch.float32
        self.calls: list[int] = []

    def forward(self, x: Tensor, t: Tensor, context: Tensor, **_: Any) -> Tensor:
        self.calls.append(x.shape[0])
        gain, frequency, offset, shift = context[:, 0, :4].unbind(-1)
        view = (-1, *[1] * (x.dim() - 1))
        wave = torch.sin(x * frequency.view(view) + shift.view(view))
        return x * 0.6 + gain.view(view) * wave * pattern(x, 1.3) + offset.view(view) * pattern(x, 0.7)


def pattern(x: Tensor, rate: float) -> Tensor:
    """A fixed picture of a sample's shape, without a common direction with those of other rates."""
    return torch.cos(rate * torch.arange(x[0].numel(), dtype=torch.float32)).view(1, *x.shape[1:])


def patcher(kind: str, channels: int = 4) -> Any:
    """A ModelPatcher around a :class:`Net`: ``eps``, ``v`` or ``flow``."""
    comfy = load()
    config = comfy.supported_models.SD15({"disable_unet_model_creation": True, "in_channels": channels})
    types = comfy.model_base.ModelType
    model = comfy.model_base.BaseModel(config, {"eps": types.EPS, "v": types.V_PREDICTION, "flow": types.FLOW}[kind])
    model.diffusion_model = Net(channels)
    return _patched(model)


def unet(kind: str = "eps") -> Any:
    """A ModelPatcher of ComfyUI's own U-Net, tiny, with random weights."""
    comfy = load()
    config = comfy.supported_models.SD15(
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
            "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
            "transformer_depth_middle": 1, "use_spatial_transformer": True, "context_dim": 16, "legacy": False,
            "use_linear_in_transformer": False, "adm_in_channels": None, "use_temporal_attention": False,
            "dtype": torch.float32,
        }
    )  # fmt: skip
    types = comfy.model_base.ModelType
    return _patched(comfy.model_base.BaseModel(config, {"eps": types.EPS, "v": types.V_PREDICTION}[kind]))


def wan() -> Any:
    """A ModelPatcher of ComfyUI's own Wan 2.1, tiny, with random weights: a flow model of video."""
    comfy = load()
    config = comfy.supported_models.WAN21_T2V(
        {
            "image_model": "wan2.1", "model_type": "t2v", "in_dim": 16, "out_dim": 16, "dim": 48, "ffn_dim": 64,
            "freq_dim": 16, "text_dim": 16, "text_len": 8, "num_heads": 2, "num_layers": 2, "dtype": torch.float32,
        }
    )  # fmt: skip
    return _patched(comfy.model_base.WAN21(config))


def _patched(model: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.diffusion_model.parameters():
            fan = weight[0].numel() if weight.dim() > 1 else 25.0
            weight.copy_(torch.randn(weight.shape, generator=generator) / fan**0.5 + (weight.dim() == 1) * 0.5)
    cpu = torch.device("cpu")
    return load().model_patcher.ModelPatcher(model.eval(), cpu, cpu)


def conditioning(seed: int) -> list[Any]:
    """A CONDITIONING of two tokens of 16."""
    return [[torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(seed)), {}]]


def sample(model: Any, noise: Tensor, cfg: float, *, steps: int = 4, sampler: str = "euler", **options: Any) -> Tensor:
    """ComfyUI's ``KSampler`` from pure noise, under the conditionings 1 and 2."""
    comfy = load()
    with torch.inference_mode():  # As ComfyUI executes nodes.
        result = comfy.sample.sample(
            model, noise, steps, cfg, sampler, "normal", conditioning(1), conditioning(2), torch.zeros_like(noise),
            disable_pbar=True, seed=0, **options,
        )  # fmt: skip
    return result  # type: ignore[no-any-return]
