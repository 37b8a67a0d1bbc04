"""A denoiser's outputs as the passes that a scheduler's sample is made of, and the guided one as what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .forms import PipelineForm

__all__ = ["finished", "named_blocks", "output_tensor", "part_of", "with_output"]


def output_tensor(result: Any) -> Tensor:
    """The prediction in what a denoiser returned: itself, or the first of an output's fields; a list as a stack."""
    first = result if isinstance(result, Tensor) else result[0]
    return torch.stack(list(first)) if isinstance(first, list | tuple) else first


def with_output(result: Any, tensor: Tensor) -> Any:
    """Return what a denoiser returned, with another prediction in it."""
    if isinstance(result, Tensor):
        return tensor
    first = list(tensor.unbind(0)) if isinstance(result[0], list) else tensor
    if isinstance(result, tuple):
        return (first, *result[1:])
    key, *others = result.keys()
    return type(result)(**{key: first}, **{name: result[name] for name in others})


def named_blocks(form: PipelineForm, output: Tensor, made: Tensor) -> dict[str, Tensor]:
    """The passes in a batch whose names were left to the pipeline, by how many of the scheduler's samples it holds.

    Args:
        output: ``[k*B, ...]`` of the denoiser; made: ``[B, ...]``, what the pipeline made of it.

    Raises:
        ValueError: for a number of blocks that the form does not have.
    """
    count = len(form.passes) if form.part == "doubled" else output.shape[0] // made.shape[0]
    sets = {len(names): names for names in (*form.also, form.passes)} | {1: ("cond",)}
    if count not in sets or output.shape[0] % count:
        raise ValueError(
            f"pipe: its denoiser gave {output.shape[0]} samples for {made.shape[0]} of the scheduler, where it runs "
            f"{form.how}"
        )
    return dict(zip(sets[count], output.chunk(count), strict=True))


def part_of(pipe: Any, form: PipelineForm, raw: Tensor, made: Tensor, sample: Tensor) -> Tensor:
    """Return what the scheduler gets of one prediction.

    Of the sample's shape, with its sign, and at least as wide a dtype.

    Args:
        raw: ``[B, ...]`` of the denoiser; made: what the pipeline made; sample: the scheduler's.

    Raises:
        ValueError: if ``raw`` does not hold a tensor of that shape.
    """
    shape, size = list(made.shape[1:]), made.shape[0] // 2 if form.part == "doubled" else made.shape[0]
    if form.part == "variance":
        shape[0] = sample.shape[1]
    if form.part == "ltx_frames":
        _, _, frames, height, width = made.shape
        spatial, temporal = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
        raw = pipe._unpack_latents(raw, frames + 1, height, width, spatial, temporal)[:, :, 1:]
    if form.part == "list" and raw.dim() == made.dim() + 1:
        raw = raw.squeeze(2)
    if (
        raw.shape[0] != size
        or raw.dim() != made.dim()
        or any(have < want for have, want in zip(raw.shape[1:], shape, strict=True))
    ):
        raise ValueError(
            f"pipe: its scheduler gets {list(made.shape)}, which a prediction of {list(raw.shape)} does not hold"
        )
    for dim, want in enumerate(shape, start=1):
        if raw.shape[dim] > want:
            raw = raw.narrow(dim, raw.shape[dim] - want if dim == form.tail else 0, want)
    if made.dtype.itemsize > raw.dtype.itemsize:
        raw = raw.to(made.dtype)
    return -raw if form.sign < 0 else raw


def finished(form: PipelineForm, guided: Tensor, made: Tensor, passes: Mapping[str, Tensor]) -> Tensor:
    """The guided prediction as the scheduler takes it, in place of ``made``.

    Args:
        passes: the denoiser's outputs by name, whole.
    """
    guided = guided.to(made.dtype)
    if form.part == "doubled":
        return torch.cat([guided, guided])
    if form.part == "variance" and made.shape[1] > guided.shape[1]:
        return torch.cat([guided, passes["cond"][:, guided.shape[1] :].to(made.dtype)], 1)
    return guided
