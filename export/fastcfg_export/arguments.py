"""A denoiser's arguments as a graph's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import fastcfg
from fastcfg.core.conditions import Condition, Conditions

from .signature import Signature, TensorSpec

__all__ = ["condition_arguments", "fit", "noise_levels", "state_entry"]


def noise_levels(prediction: fastcfg.Prediction | None, levels: Mapping[str, Any]) -> dict[str, Any]:
    """Levels by name, those of a prediction among them."""
    own = {} if prediction is None else {"alpha": prediction.alpha, "sigma": prediction.sigma}
    return own | dict(levels)


def _flat(condition: Mapping[str, Any] | Condition) -> dict[str, Any]:
    kwargs = condition.kwargs if isinstance(condition, Condition) else condition
    flat: dict[str, Any] = {}
    for key, value in kwargs.items():
        flat |= _flat(value) if isinstance(value, Mapping) else {key: value}
    return flat


def condition_arguments(signature: Signature, conditions: Conditions) -> dict[str, Any]:
    """Tensors by the names of the graph's inputs."""
    names = signature.conditions
    # A student takes one condition of those that samplers of its teacher give.
    if not set(names) <= set(conditions) or (signature.rule is not None and len(conditions) > len(names)):
        raise ValueError(f"conditions: expected {list(names)}, got {list(conditions)}")
    arguments: dict[str, Any] = {}
    for name in names:
        condition = conditions[name]
        if isinstance(condition, Condition) and (condition.model or condition.context):
            raise ValueError(f"conditions: {name!r} has a model or a context of its own, which no engine runs")
        flat = _flat(condition)
        keys = [spec.key for spec in signature.by_role("condition") if spec.condition == name]
        if sorted(flat) != sorted(keys):
            raise ValueError(f"conditions: {name!r}: expected the arguments {keys}, got {list(flat)}")
        arguments |= {f"{name}_{key}": value for key, value in flat.items()}
    return arguments


def state_entry(spec: TensorSpec, state: fastcfg.State | None, x: Tensor) -> Tensor:
    """The tensor of a state, zero at first."""
    if state is None:
        raise ValueError(f"state: the engine carries {spec.key!r}; give state=fastcfg.State(), one for a request")
    return state[spec.key] if spec.key in state else torch.zeros_like(x, dtype=spec.torch_dtype)


def fit(spec: TensorSpec, value: Any, x: Tensor) -> Tensor:
    """A value as the graph's input: a number or 0-dim tensor for each image, in the input's dtype."""
    if not isinstance(value, Tensor):
        if len(spec.dims) > 1 or isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{spec.name}: expected a tensor, got {type(value).__name__}")
        return torch.full((x.shape[0],), value, dtype=spec.torch_dtype, device=x.device)
    if spec.torch_dtype.is_floating_point != value.is_floating_point() and spec.role == "condition":
        raise TypeError(f"{spec.name}: expected {spec.dtype}, got {value.dtype}")
    if len(spec.dims) == 1 and value.numel() == 1:
        value = value.reshape(1).expand(x.shape[0])
    fitted: Tensor = value.to(device=x.device, dtype=spec.torch_dtype)
    return fitted.contiguous()
