"""Groups of elements other than a whole sample: tokens, a pixel's channels, frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Size, Tensor

__all__ = ["Groups"]


class Groups:
    """Tensors ``[B, ...]`` as rows ``[G, N]``, a row being the elements that one sum runs over.

    Args:
        shape: of the predictions; dims: the dimensions that sums run over, not the batch's; none at all means the
            whole tensor, batch and all, as some peers have it.

    Raises:
        ValueError: naming ``dims`` if they don't fit the shape.
    """

    def __init__(self, shape: Size, dims: Sequence[int]) -> None:
        rank = len(shape)
        self.dims, self.whole = tuple(dims), not dims
        if self.whole:
            self._order, self._shape = list(range(rank)), list(shape)
            self._count, self._repeat = math.prod(shape), 1
            return
        reduced = sorted({d % rank for d in dims if -rank <= d < rank})
        if len(reduced) != len(dims) or 0 in reduced:
            raise ValueError(f"dims: expected distinct dimensions 1 ... {rank - 1} of {list(shape)}, got {tuple(dims)}")
        kept = [d for d in range(rank) if d not in reduced]
        self._order = [*kept, *reduced]
        self._shape = [shape[d] for d in self._order]
        self._count = math.prod([shape[d] for d in reduced])
        self._repeat = math.prod([shape[d] for d in kept[1:]])

    @property
    def number(self) -> int:
        """Return how many groups there are."""
        return math.prod(self._shape) // max(self._count, 1)

    def rows(self, tensor: Tensor) -> Tensor:
        """``[B, ...]`` as ``[G, N]``, the samples' groups one after the other."""
        return tensor.permute(self._order).reshape(-1, self._count)

    def values(self, value: Any) -> Any:
        """A parameter for each group: a ``[B]`` tensor repeated, anything else as it is.

        Raises:
            ValueError: for a value per sample where the group is the whole batch.
        """
        if isinstance(value, Tensor) and value.dim():
            if self.whole and value.numel() > 1:
                if value.stride(0) != 0:
                    raise ValueError("params: sums over the whole batch take one value for all samples")
                return value[:1]
            return value.repeat_interleave(self._repeat)
        return value

    def back(self, rows: Tensor) -> Tensor:
        """``[G, N]`` as ``[B, ...]``."""
        inverse = [self._order.index(d) for d in range(len(self._order))]
        return rows.view(self._shape).permute(inverse)
