"""One recorded call: room for its figures, and their way into the ring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fastcfg_kernels as fk
import torch
from fastcfg_kernels.backends.torch.tiles import stats_dtype
from torch import Tensor

from .recorder import Mark, Sums, Telemetry
from .rings import Write

if TYPE_CHECKING:
    from ..rules import Rule

__all__ = ["Recording", "begin"]


@dataclass(frozen=True)
class Recording:
    """A call that is recorded.

    Attributes:
        mark: what it is about; call: its number among the recorded ones; path: the backend that it takes.
        groups: whether each group of a sample gets a record, or their mean.
    """

    mark: Mark
    call: int
    path: str
    groups: bool = False

    @property
    def sums(self) -> Sums:
        """Which sums figures are made from."""
        return self.mark.telemetry.sums

    def room(self, program: fk.Program, first: Tensor, dims: Sequence[int] | None) -> Tensor | None:
        """Memory ``[G, F]`` for a program's figures; None where there are none to take."""
        if not program.stats or not first.numel():
            return None
        groups = first.shape[0]
        if dims is not None:
            groups = first.numel() // math.prod([first.shape[d] for d in dims]) if dims else 1
        return torch.empty(groups, len(program.stats), dtype=stats_dtype(first.device), device=first.device)

    def keep(self, program: fk.Program, figures: Tensor, batch: int) -> None:
        """Put a call's figures into the ring, for a batch of so many samples."""
        groups = max(figures.shape[0] // batch, 1)
        if groups > 1 and not self.groups:
            figures, groups = figures.view(batch, groups, -1).mean(1), 1
        mark = self.mark
        mark.telemetry.write(figures, Write(program.stats, groups, self.call, mark.step, mark.ids))


def begin(
    telemetry: Telemetry | Mark,
    rule: Rule,
    predictions: Mapping[str, Any],
    backend: str | None = None,
    numerics: str = "fp32",
    *,
    step: int | None = None,
    groups: bool = False,
) -> Recording | None:
    """Count a call; what records it, or None where it is not to be recorded or there is nothing to tell.

    Args:
        predictions: by name; the call itself checks them.
        step: the sampler's, where the mark has none.
        groups: as for :class:`Recording`.
    """
    if torch.compiler.is_compiling():
        return None
    recorder = telemetry.telemetry if isinstance(telemetry, Mark) else telemetry
    if not isinstance(recorder, Telemetry):
        raise TypeError(f"telemetry: expected a fastcfg.telemetry.Telemetry, got {type(telemetry).__name__}")
    first = next(iter(predictions.values()), None)
    if not isinstance(first, Tensor) or not recorder.due(first.device):
        return None
    if rule.prepares or numerics != "fp32" or (recorder.sums == "rule" and not rule.program.reduces):
        return None
    path = fk.choose_backend(rule.program, first.device, backend)
    mark = telemetry if isinstance(telemetry, Mark) else Mark(recorder, step)
    return Recording(mark, recorder.begin(path), path, groups)
