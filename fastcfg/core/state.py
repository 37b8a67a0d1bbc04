"""State of a rule between steps: explicit, and the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["State", "gather_states", "scatter_states"]

_NUMBER = "number."


class State:
    """Tensors that a rule carries from step to step (a momentum, a cached delta, a stock noise), by name.

    One for each request: pass the same object to each call, and a fresh one (or :meth:`reset`) to start again.
    Nothing is kept anywhere else. Tensors have the predictions' shape, in float32 (float64 for float64).

    Attributes:
        numbers: host numbers by name, such as the step at which a delta was cached.
        arriving: numbers that are still on their way from a device: called with whether to wait for them, it gives
            them, or None while they are not there.
        seen: what tensors were made from, by name, where another origin makes them void. It is not saved.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.numbers: dict[str, float] = {}
        self.arriving: Callable[[bool], Mapping[str, float] | None] | None = None
        self.seen: dict[str, Any] = {}
        self._tensors: dict[str, Tensor] = {}
        self._remembered: set[str] = set()
        self._rows: set[str] = set()
        self.load_state_dict(tensors or {})

    def __getitem__(self, name: str) -> Tensor:
        self._own(name)
        return self._tensors[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._tensors[name] = tensor
        self._remembered.discard(name)
        self._rows.discard(name)

    def remember(self, name: str, tensor: Tensor, *, row: bool = False) -> None:
        """Put in what a rule remembers, which :meth:`restart` forgets.

        Args:
            row: it is a view of a batch's tensor, which is copied before anyone but :func:`gather_states` gets it.
        """
        self._tensors[name] = tensor
        self._remembered.add(name)
        if row:
            self._rows.add(name)
        else:
            self._rows.discard(name)

    def own(self) -> None:
        """Copy what is a row of a batch's tensor, so that this state alone holds it."""
        for name in list(self._rows):
            self._own(name)

    def _own(self, name: str) -> None:
        if name in self._rows:
            self._tensors[name] = self._tensors[name].clone()
            self._rows.discard(name)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def get(self, name: str) -> Tensor | None:
        """The tensor, or None."""
        self._own(name)
        return self._tensors.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        shapes = {name: list(tensor.shape) for name, tensor in self._tensors.items()}
        return f"State({shapes | self.numbers})"

    def reset(self) -> None:
        """Forget everything."""
        self._tensors.clear()
        self._remembered.clear()
        self._rows.clear()
        self.numbers.clear()
        self.seen.clear()
        self.arriving = None

    def restart(self) -> None:
        """Forget what rules remember, and keep what the caller has put in (a stock noise), as a new run begins."""
        for name in self._remembered:
            self._tensors.pop(name, None)
        self._remembered.clear()
        self._rows.clear()
        self.numbers.clear()
        self.seen.clear()
        self.arriving = None

    def kept(self) -> Callable[[], None]:
        """Return what brings back all that the state holds now: tensors, which no step writes into, and numbers."""
        tensors, numbers, seen = dict(self._tensors), dict(self.numbers), dict(self.seen)
        remembered, rows, arriving = set(self._remembered), set(self._rows), self.arriving

        def back() -> None:
            self._tensors, self.numbers, self.seen = tensors, numbers, seen
            self._remembered, self._rows, self.arriving = remembered, rows, arriving

        return back

    def settle(self, wait: bool = True) -> None:
        """Bring numbers that have arrived from a device into :attr:`numbers`; with ``wait``, those on their way too."""
        if self.arriving is not None and (arrived := self.arriving(wait)) is not None:
            self.numbers.update(arrived)
            self.arriving = None

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name, and the numbers as float64 tensors ``number.<name>``, ready for safetensors.

        It waits for numbers that are still on a device.
        """
        self.settle()
        self.own()
        numbers = {_NUMBER + name: torch.tensor(value, dtype=torch.float64) for name, value in self.numbers.items()}
        return self._tensors | numbers

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace everything by what :meth:`state_dict` gave."""
        self.arriving = None
        self.seen = {}
        self._remembered, self._rows = set(), set()
        self._tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_NUMBER)}
        self.numbers = {
            name.removeprefix(_NUMBER): tensor.item() for name, tensor in tensors.items() if name.startswith(_NUMBER)
        }


def gather_states(states: Sequence[State], names: Iterable[str]) -> State:
    """The states of requests of one sample each as the state of their batch.

    Args:
        names: which tensors; a request that has none yet gets zeros, as at its first step.

    Returns:
        A state whose tensors are ``[B, ...]``: rows put together, or the tensor that they are the rows of already.
    """
    batch = State()
    for name in names:
        rows = [state._tensors.get(name) for state in states]
        first = next((row for row in rows if row is not None), None)
        if first is not None:
            whole = [torch.zeros_like(first) if row is None else row for row in rows]
            known = _whole(whole)
            batch[name] = torch.cat(whole) if known is None else known
    return batch


def scatter_states(batch: State, states: Sequence[State], names: Iterable[str]) -> None:
    """The rows of a batch's tensors into its requests' states: views, which a state copies before it gives them out."""
    for name in names:
        for state, row in zip(states, torch.split(batch[name], 1), strict=True):
            state.remember(name, row, row=True)


def _whole(rows: Sequence[Tensor]) -> Tensor | None:
    """The tensor whose rows these are, all of them and in order."""
    base = rows[0]._base
    if base is None or base.shape != (len(rows), *rows[0].shape[1:]) or any(row._base is not base for row in rows):
        return None
    ordered = all(row.storage_offset() == base.storage_offset() + i * base.stride(0) for i, row in enumerate(rows))
    return base if ordered else None
