"""Checks of the fused op's arguments, with errors that name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends.torch.tiles import accumulator
from .finite import finite_number
from .formula.program import Program

__all__ = [
    "FLOATS",
    "check_elementwise",
    "check_extras",
    "check_map",
    "check_out",
    "check_param",
    "check_stats",
    "check_tensors",
    "elementwise_inputs",
]

FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})
"""The dtypes of predictions."""


def check_tensors(names: Sequence[str], predictions: Sequence[Tensor]) -> None:
    """Raise unless tensors have the first one's shape, dtype and device, and these are what the op takes."""
    first = predictions[0]
    for name, tensor in zip(names, predictions, strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if first.dtype not in FLOATS:
        raise TypeError(f"{names[0]}: expected a float32, bfloat16, float16 or float64 tensor, got {first.dtype}")
    if first.dim() < 2:
        raise ValueError(f"{names[0]}: expected [B, ...] with at least two dimensions, got {list(first.shape)}")
    if first.layout is not torch.strided:
        raise TypeError(f"{names[0]}: expected a dense tensor, got one of layout {first.layout}")
    for name, tensor in zip(names[1:], predictions[1:], strict=True):
        if tensor.shape != first.shape:
            raise ValueError(f"{name}: expected the shape of {names[0]}, {list(first.shape)}, got {list(tensor.shape)}")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{name}: expected the dtype of {names[0]}, {first.dtype}, got {tensor.dtype}")
        if tensor.device != first.device:
            raise ValueError(f"{name}: expected the device of {names[0]}, {first.device}, got {tensor.device}")
        if tensor.layout is not torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got one of layout {tensor.layout}")


def check_out(out: Tensor, first: Tensor) -> None:
    """Raise unless ``out`` can take a result of the shape and on the device of ``first``."""
    if out.shape != first.shape or out.device != first.device:
        expected = f"{list(first.shape)} on {first.device}"
        raise ValueError(f"out: expected a tensor {expected}, got {list(out.shape)} on {out.device}")
    if not out.is_contiguous() and out.layout is torch.strided and _overlaps_itself(out):
        raise ValueError(f"out: expected memory for each element, got overlapping ones of strides {out.stride()}")
    if out.requires_grad and out.is_leaf and torch.is_grad_enabled():
        raise ValueError("out: expected a tensor that needs no gradient, got a leaf that does; write it in no_grad()")


def _overlaps_itself(tensor: Tensor) -> bool:
    """Return whether two elements may lie in one place.

    Each dimension has to step over all that the smaller steps reach.
    """
    reach = 0
    for step, size in sorted((abs(s), n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if step <= reach:
            return True
        reach += step * (size - 1)
    return False


def check_param(name: str, value: Any, batch: int, device: torch.device, check: bool = False) -> Any:
    """A parameter as a float, or as a 0-dim or ``[B]`` floating tensor on ``device``.

    A list (or tuple) of a number for each sample counts too, and so does a tensor ``[B, 1, 1, 1]``, which broadcasts.

    Raises:
        TypeError: if it is neither numbers nor a floating tensor.
        ValueError: if a number is not finite, or a tensor has another shape or device (or, with ``check=True``,
            is not finite; that reads device memory).
    """
    if isinstance(value, list | tuple):
        if len(value) not in (1, batch):
            raise ValueError(f"{name}: expected a number for each of {batch} samples, got {len(value)}")
        numbers = [finite_number(f"{name}[{i}]", v) for i, v in enumerate(value)]
        value = torch.tensor(numbers, dtype=torch.float64).to(device)
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating tensor, got {value.dtype}")
        if value.dim() > 1 and value.shape[0] in (1, batch) and value.numel() == value.shape[0]:
            value = value.reshape(-1)
        if value.dim() > 1 or (value.dim() == 1 and value.shape[0] not in (1, batch)):
            raise ValueError(f"{name}: expected a tensor of shape [] or [{batch}], got {list(value.shape)}")
        if value.device != device:
            if value.dim() or value.device.type != "cpu":
                raise ValueError(f"{name}: expected a tensor on {device}, got one on {value.device}")
            return check_param(name, value.item(), batch, device)
        if check and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name}: expected finite values, got {value.tolist()}")
        # One value for all samples takes the path of a value each, as it does for a batch of one.
        return value.expand(batch) if value.dim() == 1 and value.shape[0] != batch else value
    return finite_number(name, value, "a number or a floating tensor")


def elementwise_inputs(program: Program) -> tuple[tuple[str, bool], tuple[str, bool]]:
    """Names of the elementwise inputs, in their order, and which of them the program has."""
    return ("scale_map", program.scaled), ("mask", program.masked)


def check_elementwise(program: Program, first: Tensor, scale_map: Tensor | None, mask: Tensor | None) -> list[Tensor]:
    """The program's elementwise inputs as views of the predictions' shape."""
    views = []
    for (name, wanted), given in zip(elementwise_inputs(program), (scale_map, mask), strict=True):
        if (given is not None) != wanted:
            raise ValueError(f"{name}: the program takes {'one' if wanted else 'none'}")
        if given is None:
            continue
        views.append(check_map(name, given, first))
    return views


def check_map(name: str, given: Any, first: Tensor) -> Tensor:
    """Return an elementwise input, ``scale_map`` or ``mask``, as a view of the predictions' shape.

    Raises:
        TypeError, ValueError: naming it.
    """
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(given).__name__}")
    if name == "scale_map" and not given.is_floating_point():
        raise TypeError(f"{name}: expected a floating tensor, got {given.dtype}")
    if given.device != first.device:
        raise ValueError(f"{name}: expected a tensor on {first.device}, got one on {given.device}")
    try:
        wide = given.to(accumulator(first.dtype)) if name == "scale_map" else given
        return wide.expand(first.shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {list(first.shape)}, got {list(given.shape)}"
        ) from None


def check_extras(program: Program, first: Tensor, extras: Sequence[Tensor]) -> None:
    """Raise unless the program's further inputs are there and fit the first prediction."""
    if len(extras) != len(program.extras):
        raise ValueError(f"extras: expected {len(program.extras)} {list(program.extras)}, got {len(extras)}")
    acc = accumulator(first.dtype)
    for name, extra in zip(program.extras, extras, strict=True):
        if extra.shape != first.shape or extra.dtype not in (acc, first.dtype) or extra.device != first.device:
            raise ValueError(
                f"{name}: expected {list(first.shape)} in {acc} or {first.dtype} on {first.device}, "
                f"got {list(extra.shape)} in {extra.dtype} on {extra.device}"
            )


def check_stats(program: Program, stats: Tensor | None, first: Tensor, groups: int) -> None:
    """Raise unless there is memory for a program's stats, and for nothing else."""
    count, dtype = len(program.stats), accumulator(first.dtype)
    if stats is None or not count:
        raise ValueError(f"stats_out: expected {'a tensor' if count else 'none'}, since there are {count} stats")
    fits = stats.shape[-1:] == (count,) and stats.numel() == groups * count and stats.is_contiguous()
    if not fits or stats.dtype != dtype or stats.device != first.device or stats.requires_grad:
        raise ValueError(
            f"stats_out: expected a contiguous [{groups}, {count}] of {dtype} on {first.device}, without a gradient, "
            f"got {list(stats.shape)} of {stats.dtype} on {stats.device}"
        )
