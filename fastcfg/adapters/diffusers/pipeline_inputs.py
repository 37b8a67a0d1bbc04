"""A denoiser call's inputs: its blocks of the batch taken apart, and a condition put in the place of another."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["bind", "blocks", "rows", "with_condition"]

# fmt: off
_BY_SAMPLE = frozenset({
    "added_cond_kwargs", "added_time_ids", "attention_mask", "block_controlnet_hidden_states", "cap_feats",
    "class_labels", "clip_img", "clip_text", "clip_text_pooled", "controlnet_block_samples",
    "controlnet_single_block_samples", "crop_coords", "down_block_additional_residuals",
    "down_intrablock_additional_residuals", "effnet", "encoder_attention_mask", "encoder_attention_mask_1",
    "encoder_hidden_states", "encoder_hidden_states_1", "encoder_hidden_states_image",
    "encoder_hidden_states_llama3", "encoder_hidden_states_mask", "encoder_hidden_states_t5",
    "global_hidden_states", "guidance", "hidden_states", "image_meta_size", "mid_block_additional_residual",
    "original_size", "pooled_embeds", "pooled_projections", "proj_embedding", "sample", "style", "t",
    "target_size", "text_embedding_mask", "text_embedding_mask_t5", "timestep", "timestep_cond",
    "timestep_ratio", "timesteps", "x",
})
# fmt: on
"""Arguments of diffusers' denoisers whose dim 0 is the batch where it has the batch's size. Of any other (rotary
tables, token numbers) it may have that size by accident."""


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


def blocks(named: Mapping[str, Any], keep: Sequence[int], count: int) -> dict[str, Any]:
    """The arguments of some of a batch's blocks.

    Args:
        named: the call's arguments.
        keep: numbers of the blocks to keep, in their new order; count: how many there are.

    Raises:
        ValueError: naming an argument that may or may not have the batch along dim 0.
    """
    total = rows(named)
    size = total // count

    def of_list(value: list[Any]) -> list[Any]:
        return [item for k in keep for item in value[k * size : (k + 1) * size]]

    def of_tensor(value: Tensor) -> Tensor:
        parts = [value[k * size : (k + 1) * size] for k in keep]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def visit(name: str, value: Any, known: bool) -> Any:
        if isinstance(value, Tensor):
            if not value.dim() or value.shape[0] != total:
                return value
            if not known:
                raise ValueError(f"{name}: is of the batch's size along dim 0, but maybe not by sample")
            return of_tensor(value)
        if isinstance(value, Mapping):
            return {key: visit(f"{name}[{key!r}]", item, known) for key, item in value.items()}
        if isinstance(value, list | tuple):
            if known and isinstance(value, list) and len(value) == total and _samples(value, total):
                return of_list(value)
            return type(value)(visit(f"{name}[{i}]", item, known) for i, item in enumerate(value))
        return value

    return {name: visit(name, value, name in _BY_SAMPLE) for name, value in named.items()}


def _samples(values: list[Any], total: int) -> bool:
    """Whether a list holds samples (ragged or without a batch dimension) and not tensors of the batch."""
    return all(isinstance(v, Tensor) and not (v.dim() > 1 and v.shape[0] == total) for v in values)


def with_condition(denoiser: Any, named: Mapping[str, Any], condition: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """A call's arguments with a condition's in their place; mappings are merged.

    A tensor that stands for one of the batch's size is repeated to it, sample by sample, as the pipelines repeat a
    prompt's embeddings for several images of it.

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
            if old.dim() and new.dim() and old.shape[0] == batch != new.shape[0] and batch % new.shape[0] == 0:
                new = new.repeat_interleave(batch // new.shape[0], 0)
        return new

    return {**named, **{name: merge(name, named.get(name), value) for name, value in condition.items()}}
