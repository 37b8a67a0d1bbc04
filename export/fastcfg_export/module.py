"""A model and a rule as one ``torch.nn.Module``, the form that exporters take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import fastcfg

__all__ = ["GuidedModule"]


class GuidedModule(torch.nn.Module):
    """``forward(sample, timestep, scale, *conditions)``: the batched passes and the combine in one graph.

    Args:
        model: ``model(x, t, condition)`` that returns a tensor ``[B, ...]``.
        rule: a rule with a parameter ``scale`` and no schedules.

    ``conditions`` are tensors ``[B, ...]``, one for each name in ``rule.conditions``; ``scale`` is ``[B]``. The
    doubling of the batch is inside, and leaves the batch dynamic.
    """

    def __init__(self, model: torch.nn.Module, rule: fastcfg.Rule) -> None:
        super().__init__()
        if rule.scheduled:
            raise ValueError("rule: has schedules; an exported graph takes its scale as an input")
        if "scale" not in rule.lowered.params:
            raise ValueError(f"rule: expected one with a parameter 'scale', got {type(rule).__name__}")
        self.model = model
        self.rule = rule

    def forward(self, sample: Tensor, timestep: Tensor, scale: Tensor, *conditions: Tensor) -> Tensor:
        """The guided prediction ``[B, ...]``; ``timestep`` is ``[B]``."""
        names: Sequence[str] = self.rule.conditions
        if len(conditions) != len(names):
            raise ValueError(f"conditions: expected {len(names)} ({', '.join(names)}), got {len(conditions)}")
        passes = len(names)
        result = self.model(
            sample.repeat(passes, *[1] * (sample.dim() - 1)), timestep.repeat(passes), torch.cat(conditions)
        )
        # Not chunk(passes): exporters take its split sizes for constants, which fixes the batch.
        parts = result.unflatten(0, (passes, sample.shape[0])).unbind(0)
        return fastcfg.guide(self.rule, params={"scale": scale}, **dict(zip(names, parts, strict=True)))
