"""A model as an exporter sees it: one call, and the names, dimensions and dtypes of what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastcfg.distill.lora import Lora
from fastcfg.distill.student import Student

from .signature import BATCH, Axis, dtype_name

__all__ = ["GraphModel", "Input", "adapt", "from_example"]


@dataclass(frozen=True)
class Input:
    """Dimensions and dtype of a tensor that a model takes.

    Args:
        dims: ``("batch", …)``: a size, or the name of an axis.
        dtype: by default the model's own.
        span: bounds of the values (labels, times) for tests.
    """

    dims: tuple[int | str, ...]
    dtype: torch.dtype | None = None
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.dims or self.dims[0] != BATCH:
            raise ValueError(f"dims: expected {BATCH!r} first, got {self.dims}")


@dataclass(frozen=True)
class GraphModel:
    """A model for :func:`fastcfg_export.export_onnx`.

    Args:
        module: ``module(x, t, **arguments)`` that returns the prediction, a tensor of ``sample``'s dims.
        sample: the noisy latent.
        conditions: arguments of which each pass has its own (text embeddings, labels).
        axes: sizes of the axes named in ``dims``; ``"batch"`` has a default.
        shared: arguments that all passes share (masks, ids); repeated inside.
        scale: the argument, if any, in which the model takes a guidance scale ``[B]`` of its own: a student's.
        times: bounds of the timesteps, in the model's own unit.
        dtype: of the computation; by default that of the module's first floating parameter.
    """

    module: torch.nn.Module
    sample: Input
    conditions: Mapping[str, Input]
    axes: Mapping[str, Axis] = field(default_factory=dict)
    shared: Mapping[str, Input] = field(default_factory=dict)
    scale: str | None = None
    times: tuple[float, float] = (0.0, 1000.0)
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.module, torch.nn.Module):
            raise TypeError(f"module: expected a torch.nn.Module, got {type(self.module).__name__}")
        object.__setattr__(self, "axes", {BATCH: Axis(1, 1, 16), **self.axes})
        if self.dtype is None:
            floats = (p.dtype for p in self.module.parameters() if p.is_floating_point())
            object.__setattr__(self, "dtype", next(floats, torch.float32))
        dtype_name(self.float_dtype)
        named = {"sample": self.sample, **self.conditions, **self.shared}
        for name, spec in named.items():
            if unknown := [d for d in spec.dims if isinstance(d, str) and d not in self.axes]:
                raise ValueError(f"{name}: dims name the axes {unknown}, axes has {sorted(self.axes)}")
        if twice := sorted(set(self.conditions) & set(self.shared)):
            raise ValueError(f"shared: {twice} are conditions too")

    @property
    def float_dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        assert self.dtype is not None
        return self.dtype

    def with_axes(self, axes: Mapping[str, Axis]) -> GraphModel:
        """The model with other sizes."""
        return replace(self, axes=dict(axes))


def adapt(model: Any) -> GraphModel:
    """A :class:`GraphModel` of a diffusers model or a distilled student, or the one that was given.

    Knows ``UNet2DConditionModel`` (SD 1.x, SD 2.x, SDXL, LCM students), ``SD3Transformer2DModel``,
    ``FluxTransformer2DModel`` and ``WanTransformer3DModel`` and their subclasses, and the demo's ``UNet``.

    Raises:
        TypeError: for a model that has to be described with :class:`GraphModel` or :func:`from_example`.
        ValueError: naming what a known architecture is configured with that the graph does not take.
    """
    if isinstance(model, GraphModel):
        return model
    if isinstance(model, Student):
        return _student(model)
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module or a GraphModel, got {type(model).__name__}")
    names = {cls.__name__ for cls in type(model).__mro__}
    if type(model).__module__.startswith("fastcfg.demo") and "UNet" in names:
        from .demo_model import demo_unet

        return demo_unet(model)
    from . import diffusers_models

    for name, adapter in diffusers_models.ADAPTERS.items():
        if name in names:
            return adapter(model)
    raise TypeError(
        f"model: {type(model).__name__} is not a known architecture ({', '.join(diffusers_models.ADAPTERS)}); "
        "describe it with fastcfg_export.GraphModel or fastcfg_export.from_example"
    )


def _student(student: Student) -> GraphModel:
    """A distilled student: one pass, whose scale is embedded inside."""
    graph = adapt(student.network)
    if graph.scale is None:
        return replace(graph, module=student.module(), scale="scale")
    if student.lora is None:
        return graph
    return replace(graph, module=_Following(graph.module, student.lora, graph.scale))


class _Following(torch.nn.Module):
    """A module with an adapter, whose strength follows the module's guidance scale."""

    def __init__(self, module: torch.nn.Module, lora: Lora, scale: str) -> None:
        super().__init__()
        self.module, self.lora, self.scale = module, lora, scale

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module returns."""
        self.lora.follow(kwargs[self.scale])
        return self.module(*args, **kwargs)


def from_example(
    module: torch.nn.Module,
    x: Tensor,
    conditions: Mapping[str, Tensor],
    *,
    open_dims: Mapping[str, Mapping[int, str]] | None = None,
    axes: Mapping[str, Axis] | None = None,
    shared: Mapping[str, Tensor] | None = None,
    scale: str | None = None,
    times: tuple[float, float] = (0.0, 1000.0),
) -> GraphModel:
    """A :class:`GraphModel` of any module from one example of its arguments.

    Args:
        module: ``module(x, t, **conditions, **shared)``.
        x, conditions, shared: examples with dim 0 of B; all other sizes are fixed unless ``open_dims`` names an axis.
        open_dims: for an argument (``"x"`` for the sample), names of axes by dimension, negative ones too.
        axes: their sizes.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    given = {"x": x, **conditions, **(shared or {})}
    if unknown := sorted(set(open_dims or {}) - set(given)):
        raise ValueError(f"open_dims: expected some of {sorted(given)}, got {unknown}")

    def spec(name: str, tensor: Tensor) -> Input:
        if not isinstance(tensor, Tensor) or not tensor.dim():
            raise TypeError(f"{name}: expected a tensor with dim 0 of B, got {type(tensor).__name__}")
        if tensor.shape[0] != x.shape[0]:
            raise ValueError(f"{name}: expected dim 0 of {x.shape[0]}, as x has, got {list(tensor.shape)}")
        dims: list[int | str] = [BATCH, *tensor.shape[1:]]
        for dim, axis in (open_dims or {}).get(name, {}).items():
            if not -len(dims) < dim < len(dims) or dim % len(dims) == 0:
                raise ValueError(f"open_dims: expected a dimension of {name} other than 0, got {dim}")
            dims[dim] = axis
        span = None if tensor.is_floating_point() else (0.0, float(tensor.max()) + 1)
        return Input(tuple(dims), None if tensor.is_floating_point() else tensor.dtype, span)

    return GraphModel(
        module,
        spec("x", x),
        {name: spec(name, tensor) for name, tensor in conditions.items()},
        axes or {},
        {name: spec(name, tensor) for name, tensor in (shared or {}).items()},
        scale,
        times,
    )
