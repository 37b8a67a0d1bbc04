"""What a rule remembers between steps: explicit, and the caller's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

__all__ = ["State"]


class State:
    """Tensors that a rule carries from step to step (a momentum, a cached delta, a stock noise), by name.

    One for each request: pass the same object to each call, and a fresh one (or :meth:`reset`) to start again.
    Nothing is kept anywhere else. Tensors have the predictions' shape, in float32 (float64 for float64).
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self._tensors: dict[str, Tensor] = dict(tensors or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._tensors[name] = tensor

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"State({ {name: list(tensor.shape) for name, tensor in self._tensors.items()} })"

    def reset(self) -> None:
        """Forget everything."""
        self._tensors.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name, ready for safetensors."""
        return dict(self._tensors)

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace everything by ``tensors``."""
        self._tensors = dict(tensors)
