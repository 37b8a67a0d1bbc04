"""Models that predict more than what is guided: a learned variance in further channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .planner import PassPlan

__all__ = ["GuidedChannels"]

Guide = Callable[[Mapping[str, Tensor], Tensor | None], Tensor]


class GuidedChannels:
    """The first ``count`` channels (dim 1) are guided; the others are one pass's own, or left out.

    Args:
        rest: the pass whose other channels are kept, or None.
    """

    def __init__(self, count: int, rest: str | None = None) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"guided_channels: expected a positive integer, got {count!r}")
        self.count, self.rest = count, rest

    def of(self, prediction: Tensor) -> Tensor:
        """The guided channels of a prediction, as a view."""
        return prediction[:, : self.count]

    def guide(self, planned: PassPlan, results: Mapping[str, Tensor], guide: Guide, out: Tensor | None) -> Tensor:
        """The result of ``guide(predictions, out)`` on the guided channels, and the rest.

        Raises:
            ValueError: if the model predicts fewer channels.
        """
        first = results[planned.passes[0]]
        if first.dim() < 2 or first.shape[1] < self.count:
            raise ValueError(f"guided_channels: the model predicts {list(first.shape)}, which has not {self.count}")
        heads = {name: self.of(result) for name, result in results.items()}
        if self.rest is None or first.shape[1] == self.count:
            return guide(heads, out)
        whole = results.get(self.rest, first)
        if planned.unguided and out is None:
            return torch.cat([guide(heads, None), whole[:, self.count :]], 1)
        out = torch.empty_like(whole) if out is None else out
        guide(heads, self.of(out))
        out[:, self.count :] = whole[:, self.count :]
        return out
