"""Condition dropout: what makes a model usable with classifier-free guidance, at training time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..validate import number

__all__ = ["INSTRUCT_PIX2PIX", "ConditionDropout", "replace_dropped"]


@dataclass(frozen=True)
class ConditionDropout:
    """Replaces conditions by their null tokens at random, sample by sample.

    A sample draws one of: all conditions dropped (``joint``), condition i alone dropped (``alone``), or none. With
    ``independent=True`` each condition is dropped by its own draw instead, and ``joint`` comes on top.

    ``ConditionDropout({"text": 0.1})({"text": embedding}, {"text": null})`` is the usual 10 %;
    :data:`INSTRUCT_PIX2PIX` is 5 % text, 5 % image, 5 % both.

    Args:
        alone: rates by the condition's name, a mapping or pairs; 0.1 ... 0.2 is usual.
        joint: rate of dropping all of them together.
        independent: one draw for each condition; rates may then add to more than 1.
        start: the first training step that drops. A conditional checkpoint that is fine-tuned for guidance, as GLIDE
            was, has it where that phase begins.

    Raises:
        TypeError, ValueError: naming the argument.

    Source: Ho & Salimans, 2207.12598, algorithm 1; Brooks et al., 2211.09800, sec. 3.2; Nichol et al., 2112.10741.
    """

    alone: tuple[tuple[str, float], ...]
    joint: float = 0.0
    independent: bool = False
    start: int = 0

    def __post_init__(self) -> None:
        pairs = tuple(self.alone.items() if isinstance(self.alone, Mapping) else self.alone)
        if not pairs or len({name for name, _ in pairs}) != len(pairs):
            raise ValueError(f"alone: expected one or more distinct conditions with their rates, got {self.alone!r}")
        checked = tuple((name, number(f"alone[{name!r}]", rate, 0.0, 1.0)) for name, rate in pairs)
        object.__setattr__(self, "alone", checked)
        object.__setattr__(self, "joint", number("joint", self.joint, 0.0, 1.0))
        if not self.independent and self.joint + sum(rate for _, rate in checked) > 1 + 1e-12:
            raise ValueError("alone, joint: exclusive rates add to more than 1; independent=True draws one by one")
        if isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 0:
            raise ValueError(f"start: expected a non-negative step, got {self.start!r}")

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions."""
        return tuple(name for name, _ in self.alone)

    def rate(self, name: str) -> float:
        """Return how often a condition is dropped, alone or with the others.

        Raises:
            ValueError: if there is no such condition.
        """
        rates = dict(self.alone)
        if name not in rates:
            raise ValueError(f"name: expected one of {list(rates)}, got {name!r}")
        return 1 - (1 - rates[name]) * (1 - self.joint) if self.independent else rates[name] + self.joint

    def draw(
        self,
        batch: int,
        *,
        step: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """Return which samples drop which conditions: bools ``[batch]`` by name, on ``device``.

        Before ``start`` nothing is dropped and nothing is drawn.

        Raises:
            ValueError: if the dropout has a ``start`` and no ``step`` is given.
        """
        if step is None and self.start:
            raise ValueError("step: expected the training step, since the dropout begins at one")
        if step is not None and step < self.start:
            return {name: torch.zeros(batch, dtype=torch.bool, device=device) for name in self.conditions}
        rows = 1 + len(self.alone) if self.independent else 1
        draws = torch.rand((rows, batch), generator=generator, device=device)
        everything = draws[0] < self.joint
        masks = {}
        edge = self.joint
        for k, (name, rate) in enumerate(self.alone, start=1):
            own = draws[k] < rate if self.independent else (draws[0] >= edge) & (draws[0] < edge + rate)
            masks[name] = everything | own
            edge += rate
        return masks

    def __call__(
        self,
        conditions: Mapping[str, Any],
        nulls: Mapping[str, Any] | None = None,
        *,
        step: int | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """The conditions of a batch, with dropped ones replaced.

        Args:
            conditions: by name: tensors ``[B, ...]`` (embeddings, images, class labels) or lists of B strings.
            nulls: the null token of each, see :func:`replace_dropped`; without one, zeros or the empty string.
            step: the training step, needed with ``start``.
            generator: of the tensors' device (of the CPU for strings).

        Raises:
            TypeError, ValueError: naming the argument.
        """
        if sorted(conditions) != sorted(self.conditions):
            raise ValueError(f"conditions: expected {list(self.conditions)}, got {list(conditions)}")
        sizes = {name: len(value) for name, value in conditions.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"conditions: expected one batch size, got {sizes}")
        device = next((value.device for value in conditions.values() if isinstance(value, Tensor)), None)
        masks = self.draw(next(iter(sizes.values())), step=step, generator=generator, device=device)
        nulls = nulls or {}
        if extra := sorted(set(nulls) - set(conditions)):
            raise ValueError(f"nulls: unknown {extra}; the conditions are {list(self.conditions)}")
        return {name: replace_dropped(conditions[name], masks[name], nulls.get(name), name) for name in conditions}


def replace_dropped(condition: Any, dropped: Tensor, null: Any = None, name: str = "condition") -> Any:
    """``null`` where ``dropped``, else the condition.

    Args:
        condition: a tensor ``[B, ...]``, or a list of B strings.
        dropped: bools ``[B]``.
        null: for tensors a learned or encoded null token, of a sample's shape ``[...]`` or ``[1, ...]`` (gradients
            flow into it), a number (an integer label of "no class", say), or None for zeros, which integer labels
            don't have. For strings a string; None is the empty one.

    Returns:
        Of the condition's type, shape and dtype.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(condition, Tensor):
        if not isinstance(null, str | None):
            raise TypeError(f"nulls[{name!r}]: expected a string, got {type(null).__name__}")
        return [(null or "") if drop else text for text, drop in zip(condition, dropped.tolist(), strict=True)]
    if null is None:
        if not condition.is_floating_point():
            raise ValueError(f"nulls[{name!r}]: expected the null label; 0 is a class of integer labels")
        null = 0.0
    mask = dropped.to(condition.device).view(-1, *[1] * (condition.dim() - 1))
    if not isinstance(null, Tensor):
        if isinstance(null, bool) or not isinstance(null, int | float):
            raise TypeError(f"nulls[{name!r}]: expected a tensor or a number, got {type(null).__name__}")
        if isinstance(null, float) and not condition.is_floating_point():
            raise TypeError(f"nulls[{name!r}]: expected an integer for {condition.dtype}, got {null}")
        return condition.masked_fill(mask, null)
    if null.shape not in (condition.shape[1:], (1, *condition.shape[1:])):
        raise ValueError(f"nulls[{name!r}]: expected the shape {list(condition.shape[1:])}, got {list(null.shape)}")
    return torch.where(mask, null.to(device=condition.device, dtype=condition.dtype), condition)


INSTRUCT_PIX2PIX = ConditionDropout((("text", 0.05), ("image", 0.05)), joint=0.05)
"""InstructPix2Pix: 5 % of the samples without text, 5 % without image, 5 % without both."""
