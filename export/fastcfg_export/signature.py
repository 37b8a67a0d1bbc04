"""Signatures of graphs: names, dimensions, dtypes, and the sizes that they serve."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

__all__ = ["BATCH", "DTYPES", "Axis", "Role", "Signature", "TensorSpec", "dtype_name", "merge_axes"]

BATCH = "batch"
"""The axis that dim 0 of every input and output is: images, not passes of the model."""

Role = Literal["sample", "timestep", "condition", "shared", "parameter", "state", "level", "output"]

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """``float16`` for ``torch.float16``.

    Raises:
        ValueError: for a dtype that no graph takes.
    """
    if dtype not in _NAMES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype}")
    return _NAMES[dtype]


@dataclass(frozen=True)
class Axis:
    """A dimension whose size is open, in the tensor's own elements.

    Args:
        low, usual, high: the smallest size, the one to be fastest at, and the largest.
        multiple: sizes have to be multiples of this (what a U-Net halves, what a transformer cuts into patches).
        pixels: pixels for an element, 8 for the latents of most image autoencoders; profiles are given in pixels.

    Raises:
        ValueError: naming the field.
    """

    low: int
    usual: int
    high: int
    multiple: int = 1
    pixels: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if not self.low <= self.usual <= self.high:
            raise ValueError(f"usual: expected low <= usual <= high, got {self.low}, {self.usual}, {self.high}")
        for name in ("low", "usual", "high"):
            if getattr(self, name) % self.multiple:
                raise ValueError(f"{name}: expected a multiple of {self.multiple}, got {getattr(self, name)}")

    @property
    def fixed(self) -> bool:
        """Return whether there is only one size."""
        return self.low == self.high

    def refusal(self, size: int) -> str | None:
        """Why a size is not served, or None."""
        if not self.low <= size <= self.high:
            return f"{self.low} to {self.high}"
        return None if size % self.multiple == 0 else f"a multiple of {self.multiple}"

    def in_pixels(self, low: int, usual: int, high: int) -> Axis:
        """The same dimension with other sizes, given in pixels.

        Raises:
            ValueError: naming the bound, if it is no whole number of elements or outside this axis.
        """
        sizes = {}
        for name, value in (("low", low), ("usual", usual), ("high", high)):
            step = self.pixels * self.multiple
            if value % step:
                raise ValueError(f"{name}: expected a multiple of {step} pixels, got {value}")
            size = value // self.pixels
            if why := self.refusal(size):
                raise ValueError(f"{name}: the graph serves {why} (times {self.pixels} pixels), got {value}")
            sizes[name] = size
        return dataclasses.replace(self, **sizes)


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph.

    Args:
        name: as in the graph.
        dims: sizes, or names of axes; the first is ``"batch"``.
        dtype: ``float32``, ``float16``, ``bfloat16``, ``int64``, …
        role: what it is for.
        key: the name it has for a caller: the model's argument, the rule's parameter, the state's entry.
        condition: for a condition, the pass that it belongs to (``uncond``, ``cond``, …).
        default: for a parameter, the value where a caller gives none.
        span: bounds of the values that a test may draw: classes of a label, times of a schedule.
    """

    name: str
    dims: tuple[int | str, ...]
    dtype: str
    role: Role
    key: str = ""
    condition: str = ""
    default: float | None = None
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not self.dims or self.dims[0] != BATCH:
            raise ValueError(f"{self.name}: expected dim 0 to be {BATCH!r}, got {self.dims}")
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name}: expected a dtype of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.role not in get_args(Role):
            raise ValueError(f"{self.name}: expected a role of {', '.join(get_args(Role))}, got {self.role!r}")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Its shape where the axes have these sizes."""
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.dims)


@dataclass(frozen=True)
class Signature:
    """All of a graph's inputs and outputs, and the sizes of its axes.

    Args:
        rule: the rule's JSON object, or None for a student, which guides itself.
        kind: what the model predicts, where a rule's domain or a step needs it.
        step: name of the sampler's step inside the graph, or None.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: Mapping[str, Axis]
    rule: Mapping[str, Any] | None = None
    kind: str | None = None
    step: str | None = None

    def by_role(self, role: Role) -> tuple[TensorSpec, ...]:
        """The inputs of a role, in order."""
        return tuple(spec for spec in self.inputs if spec.role == role)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the passes, in batch order."""
        return tuple(dict.fromkeys(spec.condition for spec in self.by_role("condition")))

    def sizes(self, shapes: Mapping[str, Iterable[int]]) -> dict[str, int]:
        """The axes' sizes in these inputs' shapes.

        Raises:
            ValueError: naming the input whose shape does not fit the graph, or another input.
        """
        sizes: dict[str, int] = {}
        for spec in self.inputs:
            shape = tuple(shapes[spec.name])
            expected = ", ".join(str(sizes.get(d, d) if isinstance(d, str) else d) for d in spec.dims)
            if len(shape) != len(spec.dims):
                raise ValueError(f"{spec.name}: expected [{expected}], got {list(shape)}")
            for dim, size in zip(spec.dims, shape, strict=True):
                if (sizes.setdefault(dim, size) if isinstance(dim, str) else dim) != size:
                    raise ValueError(f"{spec.name}: expected [{expected}], got {list(shape)}")
                if isinstance(dim, str) and (why := self.axes[dim].refusal(size)):
                    raise ValueError(f"{spec.name}: {dim}: expected {why}, got {size} in {list(shape)}")
        return sizes

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Signature:
        """Return what :meth:`to_dict` described.

        Raises:
            ValueError: if it describes no signature.
        """

        def spec(entry: Mapping[str, Any]) -> TensorSpec:
            span = entry.get("span")
            return TensorSpec(**{**entry, "dims": tuple(entry["dims"]), "span": None if span is None else tuple(span)})

        try:
            return Signature(
                inputs=tuple(map(spec, data["inputs"])),
                outputs=tuple(map(spec, data["outputs"])),
                axes={name: Axis(**axis) for name, axis in data["axes"].items()},
                rule=data.get("rule"),
                kind=data.get("kind"),
                step=data.get("step"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"signature: not one of fastcfg's ({type(error).__name__}: {error})") from error


def merge_axes(axes: Mapping[str, Axis], overrides: Mapping[str, Axis] | None) -> dict[str, Axis]:
    """``axes`` with some replaced.

    Raises:
        ValueError: naming ``axes``, for one that is not there.
    """
    if unknown := sorted(set(overrides or {}) - set(axes)):
        raise ValueError(f"axes: expected some of {sorted(axes)}, got {unknown}")
    return {**axes, **(overrides or {})}
