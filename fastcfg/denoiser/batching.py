"""Passes put together as one batch: the input, the conditions, and the padding of sequences of unequal length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.conditions import same_condition

__all__ = ["Buffers", "Padding", "Unbatchable", "capturing", "leaves_of", "stack_arguments"]

Arguments = Mapping[str, Any]


class Unbatchable(ValueError):
    """Conditions that can't be one batch."""


class Padding:
    """Padding of sequences ``[B, L, ...]`` of unequal L: zeros at the end, and a mask that leaves them out.

    Args:
        masks: for the name of each argument that is a sequence, the name of the argument that is its mask ``[B, L]``,
            true (or 1) where the model may look. Several sequences may share one. A pass without the mask gets one
            of its own length; where all lengths are equal and no pass has a mask, none is made.

    Only for models that leave masked positions out: in others a batch would change the result.
    """

    def __init__(self, masks: Mapping[str, str]) -> None:
        for name, mask in masks.items():
            if not isinstance(name, str) or not isinstance(mask, str) or name == mask:
                raise ValueError(f"padding: expected pairs of argument names (sequence, mask), got {dict(masks)!r}")
        self.masks = dict(masks)

    def apply(self, passes: Sequence[Arguments], batch: int) -> list[dict[str, Any]]:
        """The passes' arguments with their sequences and masks at one length."""
        padded = [dict(one) for one in passes]
        lengths: dict[str, list[int]] = {}
        for name, mask in self.masks.items():
            if not any(name in one for one in passes):
                continue
            own = [_length(name, one.get(name), batch) for one in passes]
            if lengths.setdefault(mask, own) != own:
                raise Unbatchable(f"padding: the sequences of {mask!r} have the lengths {lengths[mask]} and {own}")
            for one in padded:
                one[name] = _extend(one[name], max(own))
        for mask, own in lengths.items():
            given = [one.get(mask) for one in passes]
            if all(m is None for m in given) and len(set(own)) == 1:
                continue
            like = next((m for m in given if isinstance(m, Tensor)), None)
            device = next(one[n].device for one in passes for n, m in self.masks.items() if m == mask)
            for one, value, length in zip(padded, given, own, strict=True):
                if value is None:
                    dtype = torch.bool if like is None else like.dtype
                    value = torch.ones(batch, length, dtype=dtype, device=device)
                if value.shape != (batch, length):
                    raise Unbatchable(f"conditions: {mask!r}: expected [{batch}, {length}], got {list(value.shape)}")
                one[mask] = _extend(value, max(own))
        return padded


def _length(name: str, value: Any, batch: int) -> int:
    if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] != batch:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise Unbatchable(f"conditions: {name!r}: expected a sequence [{batch}, L, ...] in each pass, got {found}")
    return value.shape[1]


def _extend(value: Tensor, length: int) -> Tensor:
    if value.shape[1] == length:
        return value
    longer = value.new_zeros(value.shape[0], length, *value.shape[2:])
    longer[:, : value.shape[1]] = value
    return longer


def stack_arguments(
    names: Sequence[str], passes: Sequence[Arguments], batch: int, padding: Padding | None = None
) -> dict[str, Any]:
    """Keyword arguments of all passes as one: tensors of dim 0 = B concatenated, the rest required to be equal.

    Mappings, lists and tuples are taken item by item.

    Raises:
        Unbatchable: naming the argument that has no form for the whole batch.
    """
    if padding is not None:
        passes = padding.apply(passes, batch)
    keys = list(passes[0])
    for name, one in zip(names[1:], passes[1:], strict=True):
        if one.keys() != passes[0].keys():
            raise Unbatchable(
                f"conditions: {name!r} has arguments {sorted(one)}, {names[0]!r} has {sorted(keys)}; "
                "passes with different arguments need mode='sequential'"
            )
    return {key: _stack(key, [one[key] for one in passes], batch) for key in keys}


def _stack(key: str, values: Sequence[Any], batch: int) -> Any:
    first = values[0]
    if all(isinstance(v, Tensor) and v.dim() and v.shape[0] == batch for v in values):
        if len({v.shape for v in values}) > 1:
            raise Unbatchable(
                f"conditions: {key!r} has the shapes {[list(v.shape) for v in values]}; "
                "pad them to one length, name its mask in Batched(padding=...), or use mode='sequential'"
            )
        return torch.cat(list(values))
    if all(isinstance(v, Mapping) and v.keys() == first.keys() for v in values):
        return {name: _stack(f"{key}.{name}", [v[name] for v in values], batch) for name in first}
    if all(type(v) in (list, tuple) and type(v) is type(first) and len(v) == len(first) for v in values):
        return type(first)(_stack(f"{key}[{i}]", items, batch) for i, items in enumerate(zip(*values, strict=True)))
    if all(same_condition(v, first) for v in values[1:]):
        return first
    raise Unbatchable(
        f"conditions: {key!r} differs between passes and is not a tensor of dim 0 = {batch}; use mode='sequential'"
    )


def leaves_of(value: Any) -> Iterator[Any]:
    """Return what an argument holds, with the names it has in mappings."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from leaves_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves_of(item)
    else:
        yield value


class _Stacked(NamedTuple):
    """Arguments that were put together, and what they were made of: leaves with their tensors' writes."""

    batch: int
    leaves: list[Any]
    writes: list[tuple[Tensor, int]]
    flat: list[Arguments] | None
    arguments: dict[str, Any]

    def serves(self, passes: Sequence[Arguments], batch: int) -> bool:
        """Return whether these are the arguments of the passes, which hold the same objects, unwritten."""
        if batch != self.batch or not all(t._version == count and _keeps(t) for t, count in self.writes):
            return False
        if self.flat is not None and len(self.flat) == len(passes):
            pairs = zip(passes, self.flat, strict=True)
            if all(len(a) == len(b) and all(a[k] is b.get(k, b) for k in a) for a, b in pairs):
                return True
        leaves = [leaf for one in passes for leaf in leaves_of(one)]
        return len(leaves) == len(self.leaves) and all(map(_is_same, self.leaves, leaves))


class Buffers:
    """Buffers of a batch of passes: the model's input, and the conditions put together."""

    SETS = 4
    """Combinations of passes whose arguments are kept: a run has one or two."""

    def __init__(self) -> None:
        self._inputs: dict[Any, Tensor] = {}
        self._offered: tuple[Tensor, Tensor] | None = None
        self._stacked: dict[tuple[str, ...], _Stacked] = {}

    def clear(self) -> None:
        """Let go of everything."""
        self._inputs.clear()
        self._stacked.clear()
        self._offered = None

    def offer(self, x: Tensor, whole: Tensor) -> None:
        """Say that ``whole`` ``[k*B, ...]`` holds k copies of ``x``, its first block, until x is written again."""
        self._offered = x, whole

    def buffer(self, x: Tensor, count: int) -> Tensor:
        """The model's input ``[k*B, ...]`` for ``count`` passes, in x's dtype, device and order of memory."""
        last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        # A tensor made in inference mode can't be written outside of it.
        key = (count, x.shape, x.dtype, x.device, last, torch.is_inference_mode_enabled())
        if (found := self._inputs.get(key)) is None:
            if len(self._inputs) >= self.SETS:
                self._inputs.clear()
            form = torch.channels_last if last else torch.contiguous_format
            shape = (count * x.shape[0], *x.shape[1:])
            found = self._inputs[key] = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=form)
        return found

    def inputs(self, x: Tensor, count: int) -> Tensor:
        """X for each of ``count`` passes, ``[k*B, ...]``: copied into the buffer, or as it was offered."""
        if torch.is_grad_enabled() or not _keeps(x):  # A graph of gradients would hold what the next step writes.
            return x.repeat(count, *[1] * (x.dim() - 1))
        if self._offered is not None and self._offered[0] is x and self._offered[1].shape[0] >= count * x.shape[0]:
            return self._offered[1][: count * x.shape[0]]
        whole = self.buffer(x, count)
        whole.view(count, *x.shape).copy_(x)
        return whole

    def arguments(
        self, names: Sequence[str], passes: Sequence[Arguments], batch: int, padding: Padding | None
    ) -> dict[str, Any]:
        """:func:`stack_arguments`, kept while the conditions hold the same objects and no tensor was written."""
        if torch.compiler.is_compiling():
            return stack_arguments(names, passes, batch, padding)
        key = tuple(names)
        kept = self._stacked.get(key)
        if kept is not None and kept.serves(passes, batch):
            return kept.arguments
        arguments = stack_arguments(names, passes, batch, padding)
        leaves = [leaf for one in passes for leaf in leaves_of(one)]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if all(_keeps(t) and not t.is_inference() for t in tensors):
            if len(self._stacked) >= self.SETS:
                self._stacked.clear()
            nested = any(isinstance(value, Mapping | list | tuple) for one in passes for value in one.values())
            flat: list[Arguments] | None = None if nested else [dict(one) for one in passes]
            self._stacked[key] = _Stacked(batch, leaves, [(t, t._version) for t in tensors], flat, arguments)
        return arguments


def _is_same(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, Tensor) and same_condition(a, b))


def _keeps(tensor: Tensor) -> bool:
    """Return whether what is made of a tensor may outlive the step: no graph of any kind is being made of it."""
    if torch.compiler.is_compiling() or (tensor.requires_grad and torch.is_grad_enabled()):
        return False
    return not capturing(tensor)


def capturing(tensor: Tensor) -> bool:
    """Return whether a CUDA graph is being captured where the tensor is."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
