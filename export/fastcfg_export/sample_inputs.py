"""Tensors for a graph's inputs: to trace it with, and to compare it at."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .signature import Axis, Signature, TensorSpec

__all__ = ["draw_inputs", "tracing_sizes"]


def draw_inputs(
    signature: Signature,
    sizes: Mapping[str, int],
    *,
    seed: int = 0,
    parameters: Mapping[str, float] | None = None,
    double: bool = False,
) -> list[Tensor]:
    """Random tensors for every input of a graph, in order.

    Args:
        sizes: of the axes; those not named are at their lowest.
        parameters: values by key; a rule's own by default.
        double: floating tensors as float64, the same values.
    """
    full = {name: axis.low for name, axis in signature.axes.items()} | dict(sizes)
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for spec in signature.inputs:
        tensor = _draw(spec, spec.shape(full), generator, parameters or {})
        tensors.append(tensor.double() if double and tensor.is_floating_point() else tensor)
    return tensors


def _draw(
    spec: TensorSpec, shape: tuple[int, ...], generator: torch.Generator, parameters: Mapping[str, float]
) -> Tensor:
    dtype = spec.torch_dtype
    if not dtype.is_floating_point:
        low, high = spec.span or (0, 2)
        return torch.randint(int(low), int(high), shape, generator=generator).to(dtype)
    if spec.role == "parameter":
        default = {"scale": 7.5, "embedded_scale": 3.5}.get(spec.key, 0.5) if spec.default is None else spec.default
        value = parameters.get(spec.key, default)
        # A value for each image, as no two have to agree.
        return torch.linspace(value, value * 0.75, shape[0], dtype=dtype)
    if spec.role == "level":
        alpha, sigma = (0.8, 0.6) if not spec.key.startswith("next") else (0.9, 0.4359)
        return torch.full(shape, alpha if spec.key.endswith("alpha") else sigma, dtype=dtype)
    if spec.span is not None:
        low, high = spec.span
        drawn = torch.rand(shape, generator=generator) * (high - low) + low
        # Whole timesteps where there are hundreds of them, as samplers have.
        return (drawn.round() if high > 10 else drawn).to(dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def tracing_sizes(axes: Mapping[str, Axis]) -> dict[str, int]:
    """Sizes to trace at: small, and no two the same, so that none is taken for another."""
    sizes: dict[str, int] = {}
    for name, axis in axes.items():
        size = axis.low if axis.fixed else max(axis.low, 2 * axis.multiple)
        while size in sizes.values() and size + axis.multiple <= axis.high:
            size += axis.multiple
        sizes[name] = min(size, axis.high)
    return sizes
