"""Models that a test can count, and tiny ones of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Counting:
    """``tanh(x * y) + 0.1 t``: elementwise, so that a row's bits don't depend on the others; keeps its calls."""

    def __init__(self, wrap: Callable[[Tensor], Any] = lambda y: y) -> None:
        self.calls: list[dict[str, Any]] = []
        self.wrap = wrap

    def __call__(self, x: Tensor, t: Any, y: Tensor, **other: Any) -> Any:
        self.calls.append({"x": x, "t": t, "y": y, **other})
        shape = [-1] + [1] * (x.dim() - 1)
        when = t.view(shape) if isinstance(t, Tensor) and t.dim() else t
        return self.wrap(torch.tanh(x * y.view(shape)) + 0.1 * when)

    @property
    def sizes(self) -> list[int]:
        return [call["x"].shape[0] for call in self.calls]


def labels(*names: str, batch: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, Tensor]]:
    """A condition for each name, a number a sample."""
    return {n: {"y": torch.linspace(1.0 + i, 1.5 + i, batch, dtype=dtype)} for i, n in enumerate(names)}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Real(NamedTuple):
    """A model of diffusers with random weights, and inputs for it."""

    model: Callable[..., Any]
    x: Tensor
    t: Tensor
    condition: Callable[[int], dict[str, Any]]


def _by_name(module: torch.nn.Module) -> Callable[..., Any]:
    """``module(hidden_states=x, timestep=t, ...)`` as ``model(x, t, ...)``."""
    return lambda x, t, **kwargs: module(hidden_states=x, timestep=t, **kwargs)


def unet() -> Real:
    import diffusers

    module = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    return Real(
        module.eval(), draw(2, 4, 8, 8), torch.tensor([500.0, 300.0]),
        lambda seed: {"encoder_hidden_states": draw(2, 6, 8, seed=seed)},
    )  # fmt: skip


def sd3() -> Real:
    import diffusers

    module = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    return Real(
        _by_name(module.eval()), draw(2, 4, 8, 8), torch.tensor([500.0, 300.0]),
        lambda seed: {"encoder_hidden_states": draw(2, 5, 16, seed=seed), "pooled_projections": draw(2, 8, seed=seed)},
    )  # fmt: skip


def flux() -> Real:
    import diffusers

    module = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    )  # fmt: skip
    image = torch.stack([torch.zeros(16), torch.arange(16.0) // 4, torch.arange(16.0) % 4], 1)
    text = torch.zeros(5, 3)
    return Real(
        _by_name(module.eval()), draw(2, 16, 4), torch.tensor([0.5, 0.3]),
        lambda seed: {
            "encoder_hidden_states": draw(2, 5, 16, seed=seed), "pooled_projections": draw(2, 8, seed=seed),
            "img_ids": image, "txt_ids": text,
        },
    )  # fmt: skip


def wan() -> Real:
    import diffusers

    module = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )  # fmt: skip
    return Real(
        _by_name(module.eval()), draw(2, 4, 3, 8, 8), torch.tensor([500.0, 300.0]),
        lambda seed: {"encoder_hidden_states": draw(2, 5, 16, seed=seed)},
    )  # fmt: skip


def ltx() -> Real:
    import diffusers

    module = diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=2, caption_channels=16,
    )  # fmt: skip
    return Real(
        _by_name(module.eval()), draw(2, 48, 4), torch.tensor([500.0, 300.0]),
        lambda seed: {
            "encoder_hidden_states": draw(2, 5, 16, seed=seed), "encoder_attention_mask": torch.ones(2, 5),
            "num_frames": 3, "height": 4, "width": 4,
        },
    )  # fmt: skip


REAL = {"unet": unet, "sd3": sd3, "flux": flux, "wan": wan, "ltx": ltx}
