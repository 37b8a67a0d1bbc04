"""A denoiser call's inputs: its blocks of the batch taken apart, and a condition put in the place of another."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["bind", "blocks", "certain_blocks", "first_shape", "rows", "with_condition"]

# fmt: off
_BY_SAMPLE = frozenset({
    "added_cond_kwargs", "added_time_ids", "attention_mask", "block_controlnet_hidden_states", "cap_feats",
    "class_labels", "clip_img", "clip_text", "clip_text_pooled", "controlnet_block_samples",
    "controlnet_single_block_samples", "crop_coords", "down_block_additional_residuals",
    "down_intrablock_additional_residuals", "effnet", "encoder_attention_mask", "encoder_attention_mask_1",
    "encoder_hidden_states", "encoder_hidden_states_1", "encoder_hidden_states_image",
    "encoder_hidden_states_mask", "encoder_hidden_states_t5", "global_hidden_states", "guidance",
    "hidden_states", "image_meta_size", "mid_block_additional_residual", "original_size", "pooled_embeds",
    "pooled_projections", "proj_embedding", "sample", "style", "t", "target_size", "text_embedding_mask",
    "text_embedding_mask_t5", "timestep", "timestep_cond", "timestep_ratio", "timesteps", "video_coords", "x",
})
# fmt: on
"""Arguments of diffusers' denoisers whose dim 0 is the batch, or the batch times the frames."""

_LISTS = frozenset({"cap_feats", "x"})
"""Arguments that are lists of samples."""

_SHARED = frozenset({"image_rotary_emb", "img_ids", "rotary_embedding", "txt_ids"})
"""Arguments without a batch, whose dims may have its size by accident."""


def _signature(denoiser: Any) -> inspect.Signature:
    return inspect.signature(getattr(denoiser, "_orig_mod", denoiser).forward)


def bind(denoiser: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by the names in the denoiser's ``forward``."""
    signature = _signature(denoiser)
    named: dict[str, Any] = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
        elif parameter.kind is parameter.VAR_POSITIONAL and parameter.name in named:
            raise TypeError(f"denoiser: {type(denoiser).__name__}.forward takes *{parameter.name}, which has no names")
    return named


def rows(named: Mapping[str, Any]) -> int:
    """Samples in a call: dim 0 of its first tensor, or the length of its first list of tensors."""
    for value in named.values():
        if isinstance(value, Tensor) and value.dim() > 1:
            return value.shape[0]
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return len(value)
    raise ValueError("denoiser: the call has no batch of samples among its arguments")


def first_shape(named: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of a call's latents: its first tensor's, or that of the first in its first list of tensors."""
    for value in named.values():
        if isinstance(value, Tensor) and value.dim() > 1:
            return tuple(value.shape)
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return (len(value), *value[0].shape)
    return ()


def blocks(named: Mapping[str, Any], keep: Sequence[int], count: int) -> dict[str, Any]:
    """The arguments of some of a batch's blocks.

    Args:
        named: the call's arguments.
        keep: numbers of the blocks to keep, in their new order; count: how many there are.

    Raises:
        ValueError: naming an argument that may or may not belong to the samples.
    """
    total = rows(named)

    def part(value: Any) -> Any:
        size = len(value) // count
        kept = [value[k * size : (k + 1) * size] for k in keep]
        if isinstance(value, list):
            return [item for block in kept for item in block]
        return kept[0] if len(kept) == 1 else torch.cat(kept)

    def visit(name: str, value: Any, argument: str) -> Any:
        if isinstance(value, Tensor):
            if not value.dim() or value.shape[0] == 1 < total:
                return value
            if argument in _BY_SAMPLE and value.shape[0] % total == 0:
                return part(value)
            if argument in _BY_SAMPLE or total in value.shape:
                raise ValueError(f"{name}: which samples its {list(value.shape)} belong to is not certain")
            return value
        if isinstance(value, Mapping):
            return {key: visit(f"{name}[{key!r}]", item, argument) for key, item in value.items()}
        if isinstance(value, list | tuple):
            if argument in _LISTS and isinstance(value, list) and len(value) == total:
                return part(value)
            return type(value)(visit(f"{name}[{i}]", item, argument) for i, item in enumerate(value))
        return value

    return {name: value if name in _SHARED else visit(name, value, name) for name, value in named.items()}


def certain_blocks(
    denoiser: Any, args: Sequence[Any], kwargs: Mapping[str, Any], keep: Sequence[int], count: int
) -> dict[str, Any] | None:
    """:func:`blocks` of a call, or None if all are kept or it is not certain what belongs to them."""
    if len(keep) == count:
        return None
    try:
        named = bind(denoiser, args, kwargs)
        return None if rows(named) % count else blocks(named, keep, count)
    except (TypeError, ValueError):
        return None


def with_condition(denoiser: Any, named: Mapping[str, Any], condition: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """A call's arguments with a condition's in their place; mappings are merged.

    A tensor with fewer samples than the one it stands for is repeated, sample by sample, as the pipelines repeat a
    prompt's embeddings for several images or frames of it.

    Raises:
        ValueError: naming an argument that the denoiser does not take.
    """
    takes = _signature(denoiser).parameters
    if unknown := sorted(set(condition) - set(takes)):
        raise ValueError(f"conditions: {type(denoiser).__name__} takes no {unknown}; it takes {sorted(takes)}")

    def merge(name: str, old: Any, new: Any) -> Any:
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if unknown := sorted(set(new) - set(old)):
                raise ValueError(f"conditions: the denoiser's {name} has no {unknown}; it has {sorted(old)}")
            return {**old, **{key: merge(f"{name}[{key!r}]", old[key], value) for key, value in new.items()}}
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            new = new.to(device=old.device, dtype=old.dtype if old.is_floating_point() else new.dtype)
            if old.dim() and new.dim() and old.shape[0] % batch == 0 and old.shape[0] % new.shape[0] == 0:
                new = new.repeat_interleave(old.shape[0] // new.shape[0], 0)
        return new

    return {**named, **{name: merge(name, named.get(name), value) for name, value in condition.items()}}
