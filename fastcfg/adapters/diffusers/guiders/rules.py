"""Guiders that diffusers lacks: any rule of fastcfg, and the common ones by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ....denoiser.gates import unfold
from ....methods.thresholding import dynamic_threshold
from ....prediction import convert
from ....rules import CFG, DualCFG, InstructPix2Pix, MultiCondition, PerpNeg, Rule
from ....schedules import Schedule
from ....validate import number
from .arguments import as_scale, as_scales
from .conditions import ConditionGuider
from .core import Call

__all__ = [
    "DualGuidance",
    "DynamicThresholdingGuidance",
    "FrameGuidance",
    "InstructPix2PixGuidance",
    "MultiConditionGuidance",
    "PerpNegGuidance",
    "RuleGuidance",
    "ScheduledGuidance",
]


class RuleGuidance(ConditionGuider, eager=True, scales=()):
    """A guider by any rule: ``RuleGuidance(PerpNeg(7.5))``. Its passes are the rule's conditions.

    See :class:`.ConditionGuider` for how a pipeline's inputs reach them, and :class:`.FusedGuider` for what all fused
    guiders share. Predictions whose weight is zero at a step are not made.

    Args:
        rule: with its schedules and modifiers; in the config it is the rule's JSON object.
        start, stop: the window, as in diffusers' ``ClassifierFreeGuidance``.
        params: values of the rule's parameters that vary between samples: a list or a floating tensor ``[B]`` by name.
        frame_scales: a scale for each frame, in the place of the rule's ``scale``; see :func:`fastcfg.guide_frames`.
        frame_dim: the frames' dimension, 2 for ``[B, C, F, H, W]``.
        perturbed: what to skip for a rule that takes ``perturbed``: diffusers' ``LayerSkipConfig``, its fields in a
            mapping, or a list of them.
        numerics: as for :func:`fastcfg.guide`.

    Raises:
        TypeError, ValueError: naming the argument.
    """

    @register_to_config
    def __init__(
        self,
        rule: Rule | Mapping[str, Any],
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
        params: Mapping[str, Any] | None = None,
        frame_scales: Sequence[float] | None = None,
        frame_dim: int = 2,
        perturbed: Any = None,
    ) -> None:
        if not isinstance(rule, Mapping):
            raise TypeError(f"rule: expected a fastcfg rule or its JSON object, got {type(rule).__name__}")
        self.rule, self.gate = unfold(Rule.from_dict(rule))
        self._open(self.rule.conditions, start, stop, enabled)
        self.params = dict(params or {})
        self.frame_scales, self.frame_dim, self.perturbed = frame_scales, frame_dim, perturbed
        if "perturbed" in self.rule.conditions:
            self._perturbations()
        if unknown := sorted(set(self.params) - set(self.rule.lowered.params)):
            known = sorted(self.rule.lowered.params)
            raise ValueError(f"params: {type(self.rule).__name__} has {known}, got {unknown}")

    def _whole(self) -> Rule:
        return self.rule

    def _tensors(self) -> dict[str, Tensor]:
        given = {name: as_scale(f"params[{name!r}]", value) for name, value in self.params.items()}
        return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in given.items()}


class PerpNegGuidance(ConditionGuider):
    """Negatives that cannot cancel the positive, by :class:`fastcfg.PerpNeg`.

    Predictions: ``cond``, ``uncond`` (the pipeline's negative prompt, left empty), ``negative`` or ``negative_1``, …

    Args:
        guidance_scale: a number, a schedule, or one value a sample; negative_scales: one for each negative.
        scale_negative: multiply the negatives by the guidance scale too.
    """

    @register_to_config
    def __init__(
        self,
        guidance_scale: Any = 7.5,
        negative_scales: float | Sequence[Any] = 1.0,
        scale_negative: bool = False,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        self.guidance_scale, self.guidance_rescale = as_scale("guidance_scale", guidance_scale), guidance_rescale
        self.negative_scales = as_scales("negative_scales", negative_scales)
        self.scale_negative = scale_negative
        self._open(self._whole().conditions, start, stop, enabled)

    def _whole(self) -> Rule:
        return PerpNeg(self._field("guidance_scale"), self.negative_scales, self.scale_negative)


class DualGuidance(ConditionGuider):
    """Towards a prompt and away from another with a scale each, by :class:`fastcfg.DualCFG`.

    Predictions: ``cond``, ``uncond`` (the pipeline's negative prompt, left empty), ``negative``.
    """

    @register_to_config
    def __init__(
        self,
        guidance_scale: Any = 7.5,
        negative_guidance_scale: Any = 1.0,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        self.guidance_scale, self.guidance_rescale = as_scale("guidance_scale", guidance_scale), guidance_rescale
        self.negative_guidance_scale = as_scale("negative_guidance_scale", negative_guidance_scale)
        self._open(self._whole().conditions, start, stop, enabled)

    def _whole(self) -> Rule:
        return DualCFG(self._field("guidance_scale"), self._field("negative_guidance_scale"))

    def _parameters(self) -> Mapping[str, str]:
        return {"scale": "guidance_scale", "negative_scale": "negative_guidance_scale"}


class MultiConditionGuidance(ConditionGuider, scales=()):
    """Several prompts with a scale each, by :class:`fastcfg.MultiCondition`.

    Predictions: ``cond_1`` (the pipeline's prompt), ``uncond``, ``cond_2``, …; of a single scale ``cond``, ``uncond``.
    """

    @register_to_config
    def __init__(
        self,
        guidance_scales: Sequence[Any] = (7.5, 7.5),
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        self.guidance_rescale = guidance_rescale
        self.guidance_scales = as_scales("guidance_scales", guidance_scales)
        self._open(self._whole().conditions, start, stop, enabled)

    def _whole(self) -> Rule:
        return MultiCondition(self.guidance_scales)

    def _parameters(self) -> Mapping[str, str]:
        return {}


class InstructPix2PixGuidance(ConditionGuider, eager=True):
    """Image editing by an instruction, by :class:`fastcfg.InstructPix2Pix`.

    Predictions: ``cond`` (image and text), ``uncond`` (neither), ``image`` (the image alone).
    """

    @register_to_config
    def __init__(
        self,
        guidance_scale: Any = 7.5,
        image_guidance_scale: Any = 1.5,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        self.guidance_scale, self.guidance_rescale = as_scale("guidance_scale", guidance_scale), guidance_rescale
        self.image_guidance_scale = as_scale("image_guidance_scale", image_guidance_scale)
        self._open(self._whole().conditions, start, stop, enabled)

    def _whole(self) -> Rule:
        return InstructPix2Pix(self._field("guidance_scale"), self._field("image_guidance_scale"))

    def _parameters(self) -> Mapping[str, str]:
        return {"scale": "guidance_scale", "image_scale": "image_guidance_scale"}


class ScheduledGuidance(ConditionGuider, eager=True):
    """CFG whose scale follows a schedule, by :class:`fastcfg.CFG`. At a step of scale 1 one pass is run.

    Schedules on the noise level need the pipeline's scheduler; see :class:`.ConditionGuider`.
    """

    @register_to_config
    def __init__(
        self,
        guidance_scale: Any,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        self.guidance_scale, self.guidance_rescale = as_scale("guidance_scale", guidance_scale), guidance_rescale
        if not isinstance(self.guidance_scale, Schedule):
            raise TypeError(f"guidance_scale: expected a schedule, got {type(self.guidance_scale).__name__}")
        self._open(("uncond", "cond"), start, stop, enabled)

    def _whole(self) -> Rule:
        return CFG(self._field("guidance_scale"))


class FrameGuidance(ConditionGuider, scales=()):
    """CFG with a scale for each frame of a video, by :func:`fastcfg.guide_frames`.

    Args:
        guidance_scales: one for each frame of the *latent*; frame_dim: 2 for ``[B, C, F, H, W]``.
    """

    @register_to_config
    def __init__(
        self,
        guidance_scales: Sequence[float],
        frame_dim: int = 2,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        self.frame_scales = [number(f"guidance_scales[{i}]", value) for i, value in enumerate(guidance_scales)]
        self.frame_dim, self.guidance_rescale = frame_dim, guidance_rescale
        self._open(("uncond", "cond"), start, stop, enabled)

    def _whole(self) -> Rule:
        return CFG()

    def _parameters(self) -> Mapping[str, str]:
        return {}


class DynamicThresholdingGuidance(ConditionGuider):
    """CFG whose clean samples are kept in range, by :func:`fastcfg.dynamic_threshold`; for pixel-space models.

    At the guided steps the prediction is taken to x0 at the scheduler's noise level, thresholded, and taken back.

    Args:
        quantile: in 0 ... 1; cap: the largest divisor, None is none.
    """

    @register_to_config
    def __init__(
        self,
        guidance_scale: Any = 7.5,
        quantile: float = 0.995,
        cap: float | None = None,
        guidance_rescale: float = 0.0,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        self.guidance_scale, self.guidance_rescale = as_scale("guidance_scale", guidance_scale), guidance_rescale
        self.quantile = number("quantile", quantile, 0.0, 1.0)
        self.cap = number("cap", cap, low=1.0, optional=True)
        self._open(("uncond", "cond"), start, stop, enabled)

    def _whole(self) -> Rule:
        return CFG(self._field("guidance_scale"))

    def _needs_input(self) -> bool:
        return True

    def _combine(self, call: Call, predictions: Mapping[str, Tensor]) -> Tensor:
        sign, signed = self._signed(predictions)
        guided = super()._combine(call, signed)
        x, level = self._model_input(guided)
        wide = torch.promote_types(guided.dtype, torch.float32)
        clean = dynamic_threshold(level.convert(guided, x, "x0", dtype=wide), quantile=self.quantile, cap=self.cap)
        back = convert(clean, x.to(wide), "x0", level.kind, alpha=level.alpha, sigma=level.sigma)
        return sign * back.to(guided.dtype)
