"""The layers of a diffusers model that a guider weakens for a pass: skipped, or without attention scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from diffusers.hooks import HookRegistry
from diffusers.hooks.layer_skip import AttentionProcessorSkipHook, _apply_layer_skip_hook
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import nn

__all__ = ["own_configs", "restore_layers", "self_attention", "weaken_layers"]

_STACKS = (
    "transformer_blocks", "blocks", "single_transformer_blocks", "layers", "visual_transformer_blocks",
    "temporal_transformer_blocks",
)  # fmt: skip


def own_configs(configs: Sequence[Any]) -> list[Any]:
    """Copies of configs of layers (applying one writes to it), their numbers in lists, as applying them expects."""
    return [replace(c, indices=[c.indices] if isinstance(c.indices, int) else list(c.indices)) for c in configs]


def self_attention(denoiser: nn.Module, config: Any) -> Iterator[nn.Module]:
    """The self-attention modules of the layers that a config names.

    Args:
        config: diffusers' ``LayerSkipConfig`` or ``SmoothedEnergyGuidanceConfig``: ``indices`` of the stack ``fqn``,
            ``"auto"`` being the first known name of a stack that the model has.

    Raises:
        ValueError: naming ``fqn`` if the model has no such stack, or ``indices`` if it has no such layers or they have
            no self-attention.
    """
    name = next((s for s in _STACKS if hasattr(denoiser, s)), None) if config.fqn == "auto" else config.fqn
    if name is None:
        raise ValueError(f"fqn: 'auto' finds no stack of layers in {type(denoiser).__name__}; name it")
    stack = dict(denoiser.named_modules()).get(name)
    if not isinstance(stack, nn.ModuleList):
        raise ValueError(f"fqn: expected the name of a ModuleList of {type(denoiser).__name__}, got {name!r}")
    found = False
    for index in config.indices:
        for module in stack[index].modules() if -len(stack) <= index < len(stack) else ():
            attends = isinstance(module, Attention | AttentionModuleMixin)
            if attends and not getattr(module, "is_cross_attention", False):
                found = True
                yield module
    if not found:
        raise ValueError(
            f"indices: expected layers of {name!r} (0 ... {len(stack) - 1}) with self-attention, got {config.indices}"
        )


def weaken_layers(denoiser: nn.Module, configs: Sequence[Any], name: str) -> None:
    """Skip what diffusers' ``LayerSkipConfig`` says until :func:`restore_layers`.

    Attention scores are skipped for any processor: diffusers looks the processor up among those that it knows, which
    Wan's default is not, though skipping the scores takes nothing from there.
    """
    for i, config in enumerate(configs):
        if config.skip_attention_scores and not config.skip_attention:
            for module in self_attention(denoiser, config):
                hook = AttentionProcessorSkipHook(None, skip_attention_scores=True)
                HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, f"{name}_{i}")
            config = replace(config, skip_attention_scores=False)
        if config.skip_attention or config.skip_ff:
            _apply_layer_skip_hook(denoiser, config, name=f"{name}_{i}")


def restore_layers(denoiser: nn.Module, configs: Sequence[Any], name: str) -> None:
    """Undo :func:`weaken_layers`."""
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    for i in range(len(configs)):
        registry.remove_hook(f"{name}_{i}", recurse=True)
