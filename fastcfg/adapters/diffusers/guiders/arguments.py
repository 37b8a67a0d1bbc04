"""Arguments and outputs of the fused guiders: scales of several kinds, JSON configs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor

from ....denoiser import Gate
from ....rules.base import number_or_schedule
from ....schedules import Schedule
from ....validate import number

__all__ = ["FusedOutput", "Scale", "as_gate", "as_scale", "as_scales", "initialiser", "plain"]

Scale = float | Schedule | Tensor
"""A number, a schedule over the steps, or one value a sample ``[B]``."""


@dataclass
class FusedOutput(GuiderOutput):  # type: ignore[misc]
    """diffusers' ``GuiderOutput``, as a dataclass: so ``.pred`` can be read where ``torch.compile`` traces."""

    pred: Tensor
    pred_cond: Tensor | None = None
    pred_uncond: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("pred", "pred_cond", "pred_uncond"):  # None too, as in diffusers.
            self[name] = getattr(self, name)


def as_scale(name: str, value: Any) -> Scale:
    """A guider's argument as a number, a schedule (a JSON object is read) or a floating tensor ``[]`` or ``[B]``.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if isinstance(value, Mapping):
        return Schedule.from_dict(dict(value))
    if isinstance(value, list | tuple):
        return torch.tensor([number(f"{name}[{i}]", v) for i, v in enumerate(value)], dtype=torch.float64)
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.dim() > 1:
            raise ValueError(f"{name}: expected a floating tensor [] or [B], got {value.dtype} {list(value.shape)}")
        return value
    return number_or_schedule(name, value)


def as_scales(name: str, values: Any) -> tuple[float | Schedule, ...]:
    """One number or schedule for each of several conditions; a single one counts as a tuple of it.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    given = values if isinstance(values, list | tuple) else (values,)
    named = ((f"{name}[{i}]", Schedule.from_dict(v) if isinstance(v, dict) else v) for i, v in enumerate(given))
    return tuple(number_or_schedule(*pair) for pair in named)


def as_gate(value: Any) -> Gate | None:
    """A guider's gate: None, a :class:`fastcfg.Gate`, or its JSON object.

    Raises:
        TypeError, ValueError: naming ``gate``.
    """
    if isinstance(value, Mapping):
        return Gate.from_dict(value)
    if value is not None and not isinstance(value, Gate):
        raise TypeError(f"gate: expected a fastcfg.Gate, its JSON object or None, got {type(value).__name__}")
    return value


def plain(value: Any) -> Any:
    """A guider's argument as its JSON config holds it."""
    if hasattr(value, "to_dict"):  # A rule, a schedule, diffusers' config of layers.
        return value.to_dict()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value


def initialiser(parent: Callable[..., None], scales: Mapping[str, str], eager: bool) -> Callable[..., None]:
    """Diffusers' ``__init__`` for the same arguments, with scales of more kinds, ``gate`` and, maybe, ``numerics``."""
    signature = inspect.signature(parent)

    @functools.wraps(parent)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        numerics = kwargs.pop("numerics", "fp32") if eager else "fp32"
        gate = as_gate(kwargs.pop("gate", None))
        # By name: diffusers' config takes what is given by place for a default, and loses it on the way back.
        arguments = dict(signature.bind(self, *args, **kwargs).arguments)
        given = {name: as_scale(name, arguments[name]) for name in scales if name in arguments}
        held = dict(scales)
        if isinstance(arguments.get("guidance_rescale"), Schedule | Mapping):
            given["guidance_rescale"] = as_scale("guidance_rescale", arguments["guidance_rescale"])
            held["guidance_rescale"] = "guidance_rescale"
        self._begin(numerics)
        parent(**{name: plain(value) for name, value in arguments.items()})
        for name, value in given.items():
            setattr(self, held[name], value)
        if eager:
            self.register_to_config(numerics=numerics)
        if gate is not None:
            self.register_to_config(gate=plain(gate))
            if self.gate is not None:
                raise ValueError("gate: the rule has one of its own; give CFG, or no gate")
            self.gate = gate
        self._ready()

    parameters = list(signature.parameters.values())
    parameters.append(inspect.Parameter("gate", inspect.Parameter.KEYWORD_ONLY, default=None))
    if eager:
        parameters.append(inspect.Parameter("numerics", inspect.Parameter.KEYWORD_ONLY, default="fp32"))
    __init__.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return __init__
