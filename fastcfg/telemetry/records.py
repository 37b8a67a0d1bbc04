"""Records on the host: what was measured of each sample at each recorded call."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .figures import FIGURES

__all__ = ["QUANTILES", "Records"]

QUANTILES = (0.5, 0.9, 0.99)

_PLACES = ("call", "step", "sample", "group")


@dataclass(frozen=True)
class Records:
    """Columns of equal length, the oldest record first.

    Attributes:
        figures: by the names in :data:`FIGURES`, from a CPU in float64 and from a GPU in float32; NaN where a rule has
            no such figure.
        call: number of the recorded call; step: of the sampler; sample: row of the batch; group: the frame, where
            frames are guided each by itself. -1 stands for what is not known (the call in a CUDA graph, say).
        ids: of the requests, or None.
        lost: records that were overwritten before they were read.
    """

    figures: Mapping[str, NDArray[np.float64]]
    call: NDArray[np.int64]
    step: NDArray[np.int64]
    sample: NDArray[np.int64]
    group: NDArray[np.int64]
    ids: tuple[Hashable | None, ...]
    lost: int = 0

    @classmethod
    def empty(cls, size: int = 0) -> Records:
        """Records of which nothing is known yet."""
        call, step, sample, group = (np.full(size, -1, np.int64) for _ in _PLACES)
        figures = {name: np.full(size, np.nan) for name in FIGURES}
        return cls(figures, call, step, sample, group, (None,) * size)

    @classmethod
    def joined(cls, parts: Iterable[Records]) -> Records:
        """Records one after the other."""
        every = list(parts) or [cls.empty()]
        return cls(
            {name: np.concatenate([part.figures[name] for part in every]) for name in FIGURES},
            ids=tuple(id for part in every for id in part.ids),
            lost=sum(part.lost for part in every),
            **{name: np.concatenate([getattr(part, name) for part in every]) for name in _PLACES},
        )

    def __len__(self) -> int:
        return len(self.call)

    def __getitem__(self, which: slice | NDArray[Any]) -> Records:
        """The records of a slice, of a mask or of numbers."""
        numbers = np.arange(len(self))[which]
        return Records(
            {name: column[which] for name, column in self.figures.items()},
            ids=tuple(self.ids[k] for k in numbers),
            lost=self.lost,
            **{name: getattr(self, name)[which] for name in _PLACES},
        )

    def summary(self, quantiles: Sequence[float] = QUANTILES) -> dict[str, dict[str, float]]:
        """For each figure of which a finite value is there: ``count``, ``mean`` and its quantiles (``"p50"``, …).

        Args:
            quantiles: in 0 … 1.
        """
        found: dict[str, dict[str, float]] = {}
        for name, column in self.figures.items():
            values = column[np.isfinite(column)]
            if len(values):
                found[name] = {"count": float(len(values)), "mean": float(values.mean())}
                cut = np.quantile(values, quantiles)
                found[name] |= {f"p{100 * q:g}": float(v) for q, v in zip(quantiles, cut, strict=True)}
        return found

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dict for each record, ready for JSON if the ids are: figures that are there, and places that are known."""
        rows = []
        for k in range(len(self)):
            row: dict[str, Any] = {} if self.ids[k] is None else {"id": self.ids[k]}
            row |= {name: int(at) for name in _PLACES if (at := getattr(self, name)[k]) >= 0}
            row |= {name: float(v) for name, column in self.figures.items() if np.isfinite(v := column[k])}
            rows.append(row)
        return rows
