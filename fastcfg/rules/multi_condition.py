"""Guidance by several conditions at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fastcfg_kernels as fk
from torch import Tensor

from .base import Lowered, Parameter, Rule, number_or_schedule
from .linear import sum_of_deltas

__all__ = ["DualCFG", "InstructPix2Pix", "MultiCondition", "check_scales", "numbered"]


def check_scales(name: str, values: Any) -> tuple[Parameter, ...]:
    """A non-empty tuple of numbers or schedules."""
    if not isinstance(values, tuple | list) or not values:
        raise TypeError(f"{name}: expected one or more numbers or schedules in a tuple, got {values!r}")
    return tuple(number_or_schedule(f"{name}[{i}]", value) for i, value in enumerate(values))


def numbered(name: str, count: int) -> tuple[str, ...]:
    """``(name,)`` for one, ``(name_1, name_2, …)`` for several."""
    return (name,) if count == 1 else tuple(f"{name}_{i}" for i in range(1, count + 1))


def towards_and_away(scale: Any, negative_scale: Any) -> tuple[Any, Any, Any]:
    """``u + s_p (c - u) - s_n (n - u)``."""
    return 1.0, scale, -negative_scale


def image_then_text(image_scale: Any, scale: Any) -> tuple[Any, Any, Any]:
    """``u + s_I (i - u) + s_T (c - i)`` in the deltas of i and c from u."""
    return 1.0, image_scale - scale, scale


@dataclass(frozen=True)
class DualCFG(Rule):
    """Towards a positive and away from a negative condition, with a scale each.

    ``uncond + scale * (cond - uncond) - negative_scale * (negative - uncond)``. With ``negative_scale=0`` it is CFG;
    with ``negative_scale = scale - 1`` the unconditional prediction cancels, which leaves a negative prompt.
    """

    scale: Parameter = 7.5
    negative_scale: Parameter = 1.0

    title = "uncond + scale * (cond - uncond) - negative_scale * (negative - uncond)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        object.__setattr__(self, "negative_scale", number_or_schedule("negative_scale", self.negative_scale))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "cond", "negative")

    def lower(self) -> Lowered:
        params = {"scale": self.scale, "negative_scale": self.negative_scale}
        return Lowered(self.conditions, (fk.Stage(towards_and_away),), params)


@dataclass(frozen=True)
class MultiCondition(Rule):
    """Several independent conditions: ``uncond + sum_i scale_i * (cond_i - uncond)``.

    Args:
        scales: a scale for each condition. One condition is called ``cond``, several ``cond_1``, ``cond_2``, …; the
            parameters are called ``scale_1``, ``scale_2``, …

    Source: Liu et al., 2206.01714, eq. 11.
    """

    scales: tuple[Parameter, ...] = (7.5, 7.5)

    title = "uncond + sum_i scale_i * (cond_i - uncond)  [2206.01714]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", check_scales("scales", self.scales))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", *numbered("cond", len(self.scales)))

    def lower(self) -> Lowered:
        params = {f"scale_{i}": scale for i, scale in enumerate(self.scales, start=1)}
        return Lowered(self.conditions, (fk.Stage(sum_of_deltas(len(self.scales))),), params)


@dataclass(frozen=True)
class InstructPix2Pix(Rule):
    """Image editing by an instruction: ``uncond + image_scale * (image - uncond) + scale * (cond - image)``.

    ``image`` is the prediction with the image alone, ``cond`` the one with image and text. Equal scales give CFG.

    Source: Brooks et al., 2211.09800, eq. 3.
    """

    scale: Parameter = 7.5
    image_scale: Parameter = 1.5

    title = "uncond + image_scale * (image - uncond) + scale * (cond - image)  [2211.09800]"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number_or_schedule("scale", self.scale))
        object.__setattr__(self, "image_scale", number_or_schedule("image_scale", self.image_scale))

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "image", "cond")

    def eager(self, predictions: Mapping[str, Tensor], params: Mapping[str, Any]) -> Tensor:
        u, i, c = predictions["uncond"], predictions["image"], predictions["cond"]
        result: Tensor = u + params["scale"] * (c - i) + params["image_scale"] * (i - u)
        return result

    def lower(self) -> Lowered:
        params = {"image_scale": self.image_scale, "scale": self.scale}
        return Lowered(self.conditions, (fk.Stage(image_then_text),), params)
