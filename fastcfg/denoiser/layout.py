"""Nested arguments as a flat list of tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Inputs", "Layout"]


class _Slot(NamedTuple):
    """Place of a tensor in the list; ``entry`` is a number's own place where one tensor holds all numbers."""

    place: int
    entry: int = -1


class Layout:
    """Layout by which a list of tensors is put back into what it was taken from.

    Attributes:
        signature: equal and hashable for two layouts that one piece of code can serve: names, shapes, dtypes, devices,
            and all values that are no tensors.
    """

    def __init__(self, tree: dict[str, Any], signature: tuple[Any, ...]) -> None:
        self._tree, self.signature = tree, signature

    def fill(self, tensors: Sequence[Tensor]) -> dict[str, Any]:
        """The nested arguments, with these tensors."""
        return {name: _fill(value, tensors) for name, value in self._tree.items()}


def _fill(value: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(value, _Slot):
        return tensors[value.place] if value.entry < 0 else tensors[value.place][value.entry]
    if isinstance(value, dict):
        return {name: _fill(item, tensors) for name, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, tensors) for item in value]
    return tuple(_fill(item, tensors) for item in value) if isinstance(value, tuple) else value


class Inputs:
    """Collects the inputs of a call: tensors as they are, and numbers together in one tensor.

    Args:
        device, dtype: of the tensor of numbers.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self.dtype = device, dtype
        self._tensors: list[Tensor] = []
        self._numbers: list[float] = []
        self._tree: dict[str, Any] = {}
        self._signature: list[Any] = []

    def add(self, name: str, value: Any) -> None:
        """Tensors in any nesting of mappings, lists and tuples; what else is in there is structure."""
        self._tree[name] = self._take(name, value)

    def add_numbers(self, name: str, values: Mapping[str, Any]) -> None:
        """Numbers, which become 0-dim tensors, and tensors."""
        self._tree[name] = {key: self._number(f"{name}.{key}", value) for key, value in values.items()}

    def _number(self, path: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._take(path, value.to(self._device, self.dtype))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{path}: expected a number or a tensor, got {type(value).__name__}")
        self._signature.append(path)
        self._numbers.append(float(value))
        return _Slot(0, len(self._numbers) - 1)

    def _take(self, path: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            self._signature.append((path, value.shape, value.stride(), value.dtype, value.device))
            self._tensors.append(value)
            return _Slot(len(self._tensors))
        if isinstance(value, Mapping):
            return {key: self._take(f"{path}.{key}", item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._take(f"{path}[{i}]", item) for i, item in enumerate(value))
        try:
            hash(value)
            self._signature.append((path, type(value), value))
        except TypeError:
            self._signature.append((path, type(value), id(value)))
        return value

    def finish(self) -> tuple[Layout, list[Tensor]]:
        """The layout and its tensors, the one of all numbers first."""
        pinned = self._device.type == "cuda"
        numbers = torch.tensor(self._numbers, dtype=self.dtype, pin_memory=pinned).to(self._device, non_blocking=True)
        return Layout(self._tree, tuple(self._signature)), [numbers, *self._tensors]
