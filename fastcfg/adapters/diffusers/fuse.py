"""Swapping a modular pipeline's guiders for fused ones, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import ModularPipeline
from diffusers.guiders.guider_utils import BaseGuidance

from ...rules import Rule
from ...validate import check_choice
from .guiders import counterparts, perturbed
from .guiders.conditions import ConditionGuider
from .guiders.core import FusedGuider
from .guiders.rules import RuleGuidance

__all__ = ["FuseReport", "fuse", "fuse_guider"]

_FUSED: dict[type, type[FusedGuider]] = {}
for _module in (counterparts, perturbed):
    for _name in _module.__all__:
        _fused = getattr(_module, _name)
        _FUSED[next(c for c in _fused.__mro__ if c.__module__.startswith("diffusers."))] = _fused


def fuse_guider(guider: BaseGuidance, *, numerics: str = "fp32") -> FusedGuider:
    """The fused counterpart of one of diffusers' guiders, with its arguments as they are now.

    Args:
        guider: of one of diffusers' own classes.
        numerics: ``"fp32"``, or ``"eager"`` for diffusers' bits where it has no sums.

    Raises:
        TypeError: naming ``guider``, for any other class.
        ValueError: naming ``numerics``, where the guider has sums.
    """
    check_choice("numerics", numerics, ("fp32", "eager"))
    fused = _FUSED.get(type(guider))
    if fused is None:
        known = ", ".join(sorted(cls.__name__ for cls in _FUSED))
        raise TypeError(f"guider: expected one of {known}, got {type(guider).__name__}")
    # What was set after the guider was made is not in its config.
    now = {k: getattr(guider, k) for k in guider.config if isinstance(vars(guider).get(k), bool | int | float)}
    options: dict[str, Any] = {}
    if numerics != "fp32":
        if not fused._eager:
            raise ValueError(f"numerics: 'eager' is for guiders without sums; {type(guider).__name__} has some")
        options["numerics"] = numerics
    made: FusedGuider = fused.from_config(guider.config, **now | options)
    if not guider._enabled:
        made.disable()
    return made


@dataclass
class FuseReport:
    """What :func:`fuse` did to a pipeline. As a context manager it undoes it on leaving.

    Attributes:
        pipe: the pipeline.
        swapped: by component, the guider that was there and the one that is.
        kept: by component, why a guider was left as it is.
    """

    pipe: Any
    swapped: dict[str, tuple[BaseGuidance, FusedGuider]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{n}: {type(old).__name__} -> {type(new).__name__}" for n, (old, new) in self.swapped.items()]
        return "\n".join([*lines, *(f"{name}: kept, {reason}" for name, reason in self.kept.items())])

    def unfuse(self) -> None:
        """Put the pipeline's own guiders back, but not over one that was put there since."""
        back = {name: old for name, (old, new) in self.swapped.items() if getattr(self.pipe, name) is new}
        if back:
            self.pipe.update_components(**back)

    def __enter__(self) -> FuseReport:
        return self

    def __exit__(self, *_: object) -> None:
        self.unfuse()


def fuse(
    pipe: Any, *, rule: Rule | Mapping[str, Any] | None = None, numerics: str = "fp32", **arguments: Any
) -> FuseReport:
    """Swap the guiders of a modular pipeline for fused ones with the same arguments, or for one by another rule.

    ``print(fuse(pipe))`` says what was swapped; ``with fuse(pipe): ...`` undoes it on leaving. Nothing else of the
    pipeline changes.

    Args:
        pipe: a ``diffusers.ModularPipeline``.
        rule: puts a :class:`.RuleGuidance` by this rule in each guider's place instead; ``arguments`` are its others.
        numerics: as for :func:`fuse_guider`.

    Returns:
        A report; a guider of an unknown class is kept, and so is one that is fused already.

    Raises:
        TypeError: naming ``pipe``, for anything but a modular pipeline.
        ValueError: naming ``pipe``, for one without a guider that can be swapped; naming ``numerics`` as above.
    """
    if not isinstance(pipe, ModularPipeline):
        raise TypeError(
            f"pipe: expected a diffusers.ModularPipeline, got {type(pipe).__name__}; classic pipelines are guided by "
            "fastcfg.adapters.diffusers.guided"
        )
    if arguments and rule is None:
        raise TypeError(f"{next(iter(arguments))}: is an argument of a rule's guider; give rule= too")
    report = FuseReport(pipe)
    for name in pipe.component_names:
        guider = getattr(pipe, name, None)
        if not isinstance(guider, BaseGuidance):
            continue
        if rule is not None:
            made: FusedGuider = RuleGuidance(rule, numerics=numerics, **arguments)
        elif isinstance(guider, FusedGuider):
            report.kept[name] = "it is a fused one"
            continue
        elif type(guider) not in _FUSED:
            report.kept[name] = f"{type(guider).__name__} has no fused counterpart"
            continue
        else:
            made = fuse_guider(guider, numerics=numerics)
        made._diffusers_load_id = "null"  # As a ComponentSpec marks what it makes; else diffusers warns of each swap.
        if isinstance(made, ConditionGuider):
            made.scheduler = getattr(pipe, "scheduler", None)
        report.swapped[name] = (guider, made)
    if not report.swapped and not report.kept:
        raise ValueError(f"pipe: has no guider; its components are {', '.join(pipe.component_names)}")
    if report.swapped:
        pipe.update_components(**{name: new for name, (_, new) in report.swapped.items()})
    return report
