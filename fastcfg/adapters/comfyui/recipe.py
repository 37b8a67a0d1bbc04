"""Recipes: the rule and modifiers that a chain of guidance nodes adds up to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from ...core.guide import guide
from ...core.state import State
from ...denoiser import Gate
from ...prediction import Kind, Prediction
from ...rules import CFG, InDomain, Linear, Rule
from ...schedules import Schedule
from .space import Space

__all__ = [
    "PLAIN",
    "Modifier",
    "Recipe",
    "Stage",
    "combine",
    "needed",
    "scheduled",
    "spaces",
    "stages",
    "with_base",
]

_GUIDED = Linear((("guided", 1.0),))


@dataclass(frozen=True)
class Modifier:
    """A change of a rule's result, in a space; None is whichever the rule works in. ``apart``: in its own launch."""

    change: Callable[[Rule], Rule]
    space: Space | None
    apart: bool = False


@dataclass(frozen=True)
class Recipe:
    """The guidance of each step.

    Attributes:
        base: the rule for a scale, which is the sampler's CFG value or what a schedule makes of it.
        space: what the rule works in; None for a rule that is the same in all.
        sources: pairs (the rule's name of a prediction, ComfyUI's: ``cond``, ``uncond``, or one of its own passes).
        modifiers: in the order of their nodes.
        schedule: takes the CFG value's place; it runs over the steps of the sampler.
        window: noise levels (low, high) outside of which the step is not guided.
        always: whether the rule differs from ``cond`` at a CFG value of 1, so that no pass may be left out there.
        gate: when passes beside ``cond`` are left out.
    """

    base: Callable[[float | Schedule], Rule]
    space: Space | None = None
    sources: tuple[tuple[str, str], ...] = (("cond", "cond"), ("uncond", "uncond"))
    modifiers: tuple[Modifier, ...] = ()
    schedule: Schedule | None = None
    window: tuple[float, float] | None = None
    always: bool = False
    gate: Gate | None = None


PLAIN = Recipe(CFG)


def with_base(recipe: Recipe, other: Recipe) -> Recipe:
    """The rule of ``other`` under the modifiers, schedule, window and gate of ``recipe``."""
    gate = other.gate or recipe.gate
    return replace(other, modifiers=recipe.modifiers, schedule=recipe.schedule, window=recipe.window, gate=gate)


@lru_cache(maxsize=256)
def scheduled(recipe: Recipe, scale: float) -> bool:
    """Return whether a recipe's rule changes by step."""
    return recipe.base(scale if recipe.schedule is None else recipe.schedule).scheduled


@dataclass(frozen=True)
class Stage:
    """A rule, one fused launch, and the kind of prediction it works on.

    Besides predictions it may read ``guided``, the stage before, and ``latent``.
    """

    rule: Rule
    kind: Kind


@lru_cache(maxsize=256)
def stages(
    recipe: Recipe, scale: float, step: int | None, num_steps: int | None, kinds: tuple[tuple[Space | None, Kind], ...]
) -> tuple[Stage, ...]:
    """The rules of a step. Modifiers in the space of what they modify are fused with it.

    Args:
        scale: the CFG value; step, num_steps: for schedules, else None.
        kinds: what the spaces are for the model.
    """
    kind = dict(kinds)
    rule = recipe.base(scale if recipe.schedule is None else recipe.schedule)
    space = recipe.space
    done: list[tuple[Rule, Space | None]] = []
    closed = False
    for modifier in recipe.modifiers:
        elsewhere = modifier.space is not None and space is not None and kind[modifier.space] != kind[space]
        # A clamp is elementwise, and so the last of its launch.
        if elsewhere or modifier.apart or closed or rule.lowered.program.clamps:
            done.append((rule, space))
            rule, space = _GUIDED, None
        rule, space = modifier.change(rule), modifier.space or space
        closed = modifier.apart
    done.append((rule, space))

    def resolved(rule: Rule, kind: Kind) -> Rule:
        if step is not None and num_steps is not None:
            rule = rule.at(step, num_steps)
        rule = rule.simplify()
        return rule if kind == "x0" else InDomain(rule, kind).simplify()

    return tuple(Stage(resolved(rule, kind[space]), kind[space]) for rule, space in done)


def spaces(recipe: Recipe) -> set[Space | None]:
    """All that a recipe's rules work in."""
    return {recipe.space, None, *(modifier.space for modifier in recipe.modifiers)}


def needed(made: tuple[Stage, ...]) -> set[str]:
    """Names of the predictions that the stages read; ``latent`` and ``guided`` are there anyway."""
    return {name for stage in made for name in stage.rule.conditions} - {"guided", "latent"}


def combine(
    made: tuple[Stage, ...],
    predictions: Mapping[str, Tensor],
    latent: Tensor,
    space: tuple[Tensor, Prediction],
    state: State,
) -> Tensor:
    """The guided clean sample ``[B, ...]`` from clean samples by the rule's names.

    Args:
        latent: x; space: x as the rules' spaces are defined for, and what a clean sample is at its noise level.
        state: of the sampling run.
    """
    given = {"latent": latent, **predictions}
    x, level = space
    for stage in made:
        if isinstance(stage.rule, Linear) and len(stage.rule.weights) == 1 and stage.rule.weights[0][1] == 1:
            given["guided"] = given[stage.rule.weights[0][0]]
            continue
        tensors: dict[str, Any] = {name: given[name] for name in stage.rule.conditions}
        if stage.rule.lowered.domain is not None:
            tensors |= {"x": x, "prediction": level}
        given["guided"] = guide(stage.rule, state=state, **tensors)
    return given["guided"]
