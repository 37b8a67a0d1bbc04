"""Swapping a pipeline's guiders for fused ones, and back."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import DiffusionPipeline, ModularPipeline
from diffusers.guiders.guider_utils import GUIDER_CONFIG_NAME, BaseGuidance

from ...denoiser import Gate
from ...rules import Rule
from ...validate import check_choice
from .guiders import counterparts, perturbed, rules
from .guiders.conditions import ConditionGuider
from .guiders.core import FusedGuider
from .guiders.rules import RuleGuidance

__all__ = ["FuseReport", "fuse", "fuse_guider", "guiders_of", "load_guiders", "save_guiders"]

_FUSED: dict[type, type[FusedGuider]] = {}
for _module in (counterparts, perturbed):
    for _name in _module.__all__:
        _fused = getattr(_module, _name)
        _FUSED[next(c for c in _fused.__mro__ if c.__module__.startswith("diffusers."))] = _fused

_BY_NAME: dict[str, type[BaseGuidance]] = {cls.__name__: cls for pair in _FUSED.items() for cls in pair}
_BY_NAME |= {name: getattr(rules, name) for name in rules.__all__}


def fuse_guider(guider: BaseGuidance, *, numerics: str = "fp32", gate: Gate | None = None) -> FusedGuider:
    """The fused counterpart of one of diffusers' guiders, with its arguments as they are now.

    Args:
        guider: of one of diffusers' own classes.
        numerics: ``"fp32"``, or ``"eager"`` for diffusers' bits where it has no sums.
        gate: when passes are left out.

    Raises:
        TypeError: naming ``guider``, for any other class.
        ValueError: naming ``numerics``, where the guider has sums.
    """
    check_choice("numerics", numerics, ("fp32", "eager"))
    fused = _FUSED.get(type(guider))
    if fused is None:
        known = ", ".join(sorted(cls.__name__ for cls in _FUSED))
        raise TypeError(f"guider: expected one of {known}, got {type(guider).__name__}")
    arguments = _arguments_now(guider)
    if numerics != "fp32":
        if not fused._eager:
            raise ValueError(f"numerics: 'eager' is for guiders without sums; {type(guider).__name__} has some")
        arguments["numerics"] = numerics
    if gate is not None:
        arguments["gate"] = gate
    return fused(**arguments)


_HELD = {"start": ("guidance_start", "_start"), "stop": ("guidance_stop", "_stop"), "enabled": ("_enabled",)}
"""Where a guider keeps what its argument is called otherwise; FDG has a window for each level."""


def _arguments_now(guider: BaseGuidance) -> dict[str, Any]:
    """The arguments that would make a guider as it is now, whatever its config says.

    The config takes what was given by place for a default, and knows nothing of what was set later.
    """
    now, arguments = vars(guider), {}
    for name in inspect.signature(type(guider).__init__).parameters:
        if name.endswith("_layers") or name == "dropout":  # Both are in the config of layers by now.
            continue
        renamed = name.replace("perturbed_guidance_config", "skip_layer_config")
        renamed = renamed.replace("perturbed_guidance", "skip_layer_guidance")
        held = next((key for key in (*_HELD.get(name, ()), name, renamed) if key in now), None)
        if held is not None:
            arguments[name] = now[held]
    return arguments


@dataclass
class FuseReport:
    """Report of what :func:`fuse` did to a pipeline. As a context manager it undoes it on leaving.

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
            _put(self.pipe, back)

    def __enter__(self) -> FuseReport:
        return self

    def __exit__(self, *_: object) -> None:
        self.unfuse()


def guiders_of(pipe: Any) -> dict[str, BaseGuidance]:
    """A pipeline's guiders by component, of a modular pipeline or of a classic one that has some."""
    if isinstance(pipe, ModularPipeline):
        parts: Mapping[str, Any] = {name: getattr(pipe, name, None) for name in pipe.component_names}
    else:
        parts = vars(pipe)
    return {name: part for name, part in parts.items() if isinstance(part, BaseGuidance)}


def _put(pipe: Any, guiders: Mapping[str, BaseGuidance]) -> None:
    if isinstance(pipe, ModularPipeline):
        pipe.update_components(**guiders)
    else:
        vars(pipe).update(guiders)  # Past its __setattr__, which would write to its config.


def fuse(
    pipe: Any,
    *,
    rule: Rule | Mapping[str, Any] | None = None,
    numerics: str = "fp32",
    gate: Gate | None = None,
    **arguments: Any,
) -> FuseReport:
    """Swap a pipeline's guiders for fused ones with the same arguments, or for one by another rule.

    ``print(fuse(pipe))`` says what was swapped; ``with fuse(pipe): ...`` undoes it on leaving. Nothing else of the
    pipeline changes.

    Args:
        pipe: a ``diffusers.ModularPipeline``, or a classic pipeline that has guiders (HunyuanVideo-1.5, HunyuanImage,
            MotifVideo).
        rule: puts a :class:`.RuleGuidance` by this rule in each guider's place instead; ``arguments`` are its others.
        numerics, gate: as for :func:`fuse_guider`.

    Returns:
        A report; a guider of an unknown class is kept, and so is one that is fused already.

    Raises:
        TypeError: naming ``pipe``, for anything but a pipeline of diffusers.
        ValueError: naming ``pipe``, for one without a guider that can be swapped; naming ``numerics`` as above.
    """
    if not isinstance(pipe, ModularPipeline | DiffusionPipeline):
        raise TypeError(f"pipe: expected a pipeline of diffusers, got {type(pipe).__name__}")
    if arguments and rule is None:
        raise TypeError(f"{next(iter(arguments))}: is an argument of a rule's guider; give rule= too")
    found = guiders_of(pipe)
    if not found:
        instead = "" if isinstance(pipe, ModularPipeline) else "; fastcfg.adapters.diffusers.guided takes it"
        parts = ", ".join(sorted(pipe.components))
        raise ValueError(f"pipe: has no guider; the components of {type(pipe).__name__} are {parts}{instead}")
    report = FuseReport(pipe)
    for name, guider in found.items():
        if rule is not None:
            made: FusedGuider = RuleGuidance(rule, numerics=numerics, gate=gate, **arguments)
        elif isinstance(guider, FusedGuider):
            report.kept[name] = "it is a fused one"
            continue
        elif type(guider) not in _FUSED:
            report.kept[name] = f"{type(guider).__name__} has no fused counterpart"
            continue
        else:
            made = fuse_guider(guider, numerics=numerics, gate=gate)
        made._diffusers_load_id = "null"  # As a ComponentSpec marks what it makes; else diffusers warns of each swap.
        if isinstance(made, ConditionGuider):
            made.scheduler = getattr(pipe, "scheduler", None)
        report.swapped[name] = (guider, made)
    _put(pipe, {name: new for name, (_, new) in report.swapped.items()})
    return report


def save_guiders(pipe: Any, directory: str | os.PathLike[str]) -> None:
    """Write each guider of a pipeline as it is now to a folder of its own in ``directory``, for :func:`load_guiders`.

    diffusers' ``save_pretrained`` leaves guiders out, whatever their arguments; call this after it.

    Raises:
        ValueError: naming ``pipe``, if it has no guider.
    """
    found = guiders_of(pipe)
    if not found:
        raise ValueError(f"pipe: has no guider, which is a {type(pipe).__name__}")
    for name, guider in found.items():
        known = type(guider) in _FUSED
        kept = type(guider)(**_arguments_now(guider)) if known else guider  # Its config may be behind, and lack places.
        kept.save_pretrained(os.path.join(directory, name))


def load_guiders(pipe: Any, directory: str | os.PathLike[str]) -> None:
    """Give a pipeline the guiders that :func:`save_guiders` wrote, ours or diffusers' own.

    Raises:
        FileNotFoundError: if ``directory`` has none for one of the pipeline's guiders.
        ValueError: naming ``directory``, for a guider of a class that is neither ours nor diffusers'.
    """
    loaded: dict[str, BaseGuidance] = {}
    for name in guiders_of(pipe):
        with open(os.path.join(directory, name, GUIDER_CONFIG_NAME), encoding="utf-8") as file:
            config = json.load(file)
        cls = _BY_NAME.get(config["_class_name"])
        if cls is None:
            raise ValueError(f"directory: {name} is a {config['_class_name']}, which is neither ours nor diffusers'")
        guider = cls.from_config(config)
        guider._diffusers_load_id = "null"
        if isinstance(guider, ConditionGuider):
            guider.scheduler = getattr(pipe, "scheduler", None)
        loaded[name] = guider
    _put(pipe, loaded)
