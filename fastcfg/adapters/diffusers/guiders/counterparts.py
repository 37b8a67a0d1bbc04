"""Fused counterparts of diffusers' guiders of two predictions: the same names, arguments and config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from diffusers.configuration_utils import register_to_config
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    FrequencyDecoupledGuidance,
    MagnitudeAwareGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders.guider_utils import BaseGuidance

from ....rules import APG, CFG, FDG, TCFG, APGMix, CFGZeroStar, MaMBOG, Rule
from ....schedules import Schedule
from .arguments import as_scales
from .core import Call, FusedGuider

__all__ = [
    "FusedAdaptiveProjectedGuidance",
    "FusedAdaptiveProjectedMixGuidance",
    "FusedClassifierFreeGuidance",
    "FusedClassifierFreeZeroStarGuidance",
    "FusedFrequencyDecoupledGuidance",
    "FusedMagnitudeAwareGuidance",
    "FusedTangentialClassifierFreeGuidance",
]


class FusedClassifierFreeGuidance(FusedGuider, ClassifierFreeGuidance, eager=True):
    """diffusers' ``ClassifierFreeGuidance`` by :class:`fastcfg.CFG`; see :class:`.FusedGuider` for what differs.

    ``numerics="eager"`` gives diffusers' own bits where there is no rescale.
    """

    def _rule(self) -> Rule:
        return CFG(self._value("guidance_scale"), base=self._base)

    def _is_cfg_enabled(self) -> bool:
        return self._guided()


class FusedAdaptiveProjectedGuidance(FusedGuider, AdaptiveProjectedGuidance):
    """diffusers' ``AdaptiveProjectedGuidance`` by :class:`fastcfg.APG`.

    The momentum is kept in float32 (diffusers: the predictions' dtype), and the norm does not overflow in float16.
    A norm over other dimensions than all but the batch (``adaptive_projected_guidance_norm_dim``) leaves the rescale
    a pass of its own.
    """

    def _rule(self) -> Rule:
        dims = self.adaptive_projected_guidance_norm_dim
        return APG(
            self._value("guidance_scale"),
            eta=self.eta,
            norm_threshold=max(self.adaptive_projected_guidance_rescale, 0.0),
            momentum=self.adaptive_projected_guidance_momentum or 0.0,
            base=self._base,
            dims=tuple(dims) if isinstance(dims, list) else dims,
        )

    def _is_apg_enabled(self) -> bool:
        return self._guided()


class FusedAdaptiveProjectedMixGuidance(
    FusedGuider, AdaptiveProjectedMixGuidance, scales=("guidance_scale", "adaptive_projected_guidance_scale")
):
    """diffusers' ``AdaptiveProjectedMixGuidance`` by :class:`fastcfg.APGMix`: CFG up to a step, then APG.

    The momentum is kept up to date from the first guided step, in float32.
    """

    def _parameters(self) -> dict[str, str]:
        return {"scale": "guidance_scale", "apg_scale": "adaptive_projected_guidance_scale"}

    def _rule(self) -> Rule:
        return APGMix(
            self._value("guidance_scale"),
            self._value("adaptive_projected_guidance_scale"),
            eta=self.eta,
            norm_threshold=max(self.adaptive_projected_guidance_rescale, 0.0),
            momentum=self.adaptive_projected_guidance_momentum or 0.0,
            start_step=self.adaptive_projected_guidance_start_step,
            base=self._base,
            phase="apg" if self._is_apg_enabled() else "cfg",
        )

    def _is_cfg_enabled(self) -> bool:
        return self._guided()

    def _is_apg_enabled(self) -> bool:
        at = self._at()
        neutral = 0.0 if self.use_original_formulation else 1.0
        later = at is not None and at[0] > self.adaptive_projected_guidance_start_step
        return later and self._guided() and not self._is_at("adaptive_projected_guidance_scale", neutral)


class FusedClassifierFreeZeroStarGuidance(FusedGuider, ClassifierFreeZeroStarGuidance):
    """diffusers' ``ClassifierFreeZeroStarGuidance`` by :class:`fastcfg.CFGZeroStar`.

    A rescale leaves the zeros of the first steps zero (diffusers: NaN), and those steps run the conditional pass
    alone. ``pred_uncond`` of the output is what was given (diffusers: scaled by alpha).
    """

    def _zero(self) -> bool:
        at = self._at()
        return bool(self._enabled and at is not None and at[0] < self.zero_init_steps)

    def _guided(self) -> bool:
        return super()._guided() and not self._zero()

    def _make(self) -> Call:
        if self._zero():
            return Call(self._passes(), CFGZeroStar(phase="zero").simplify(), (("cond", "pred_cond"),))
        return super()._make()

    def _rule(self) -> Rule:
        return CFGZeroStar(self._value("guidance_scale"), zero_init_steps=0, base=self._base)

    def _is_cfg_enabled(self) -> bool:
        return self._guided()


class FusedTangentialClassifierFreeGuidance(FusedGuider, TangentialClassifierFreeGuidance):
    """diffusers' ``TangentialClassifierFreeGuidance`` by :class:`fastcfg.TCFG`, in closed form instead of an SVD.

    ``is_conditional`` works (diffusers: AttributeError).
    """

    def _rule(self) -> Rule:
        return TCFG(self._value("guidance_scale"), base=self._base)

    def _is_tcfg_enabled(self) -> bool:
        return self._guided()


class FusedMagnitudeAwareGuidance(FusedGuider, MagnitudeAwareGuidance):
    """diffusers' ``MagnitudeAwareGuidance`` by :class:`fastcfg.MaMBOG`, for predictions of any number of dimensions.

    diffusers' own raises on 4-D and 5-D latents, and gives NaN for a zero unconditional prediction.
    """

    def _rule(self) -> Rule:
        return MaMBOG(self._value("guidance_scale"), alpha=self.alpha, base=self._base)

    def _is_mambo_g_enabled(self) -> bool:
        return self._guided()


def _levels(name: str, value: Any, count: int) -> list[Any]:
    """One value for each of ``count`` levels."""
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name}: expected one number, or {count} as there are guidance_scales, got {len(values)}")
    return values


class FusedFrequencyDecoupledGuidance(FusedGuider, FrequencyDecoupledGuidance, scales=()):
    """diffusers' ``FrequencyDecoupledGuidance`` by :class:`fastcfg.FDG`, without kornia.

    A level outside its window, or at a scale without effect, keeps the conditional prediction's own level (diffusers:
    raises, or puts another level there). The result has the predictions' size whatever it is (diffusers: padded to
    powers of two where a side cannot be halved often enough), and videos ``[B, C, F, H, W]`` work frame by frame.
    ``upcast_to_double`` is accepted and changes nothing: sums are accumulated in float32 (float64 for float64).
    """

    @register_to_config
    def __init__(
        self,
        guidance_scales: Sequence[Any] = (10.0, 5.0),
        guidance_rescale: float | list[float] | tuple[float, ...] = 0.0,
        parallel_weights: float | list[float] | tuple[float, ...] | None = None,
        use_original_formulation: bool = False,
        start: float | list[float] | tuple[float, ...] = 0.0,
        stop: float | list[float] | tuple[float, ...] = 1.0,
        guidance_rescale_space: Literal["data", "freq"] = "data",
        upcast_to_double: bool = True,
        enabled: bool = True,
    ) -> None:
        count = len(guidance_scales)
        starts, stops = _levels("start", start, count), _levels("stop", stop, count)
        BaseGuidance.__init__(self, min(starts), max(stops), enabled)
        self.guidance_scales = list(as_scales("guidance_scales", guidance_scales))
        self.levels = count
        self.guidance_rescale = _levels("guidance_rescale", guidance_rescale, count)
        self.parallel_weights = _levels(
            "parallel_weights", 1.0 if parallel_weights is None else parallel_weights, count
        )
        self.guidance_rescale_space = guidance_rescale_space
        self.use_original_formulation = use_original_formulation
        self.upcast_to_double = upcast_to_double
        self.guidance_start, self.guidance_stop = starts, stops

    def _parameters(self) -> dict[str, str]:
        return {}

    def _rule(self) -> Rule:
        neutral = 0.0 if self.use_original_formulation else 1.0
        on = map(self._is_fdg_enabled_for_level, range(self.levels))
        scales = (self._level_scale(i) if enabled else neutral for i, enabled in enumerate(on))
        by_level = self.guidance_rescale_space == "freq"
        return FDG(
            tuple(scales),
            parallel_weights=tuple(self.parallel_weights),
            rescale=tuple(self.guidance_rescale) if by_level else self.guidance_rescale[0],
            rescale_space=self.guidance_rescale_space,
            base=self._base,
        )

    def _phi(self) -> float:
        return 0.0  # The rule's own.

    def _guided(self) -> bool:
        return bool(self._enabled) and any(self._is_fdg_enabled_for_level(i) for i in range(self.levels))

    def _is_fdg_enabled(self) -> bool:
        return self._guided()

    def _is_fdg_enabled_for_level(self, level: int) -> bool:
        neutral = 0.0 if self.use_original_formulation else 1.0
        on = self._within(self.guidance_start[level], self.guidance_stop[level])
        changes = isinstance(self.guidance_scales[level], Schedule)
        unknown = changes and self._at() is None
        return bool(self._enabled) and on and (unknown or self._level_scale(level) != neutral)

    def _level_scale(self, level: int) -> float:
        value = self.guidance_scales[level]
        return value.at(*self._last()) if isinstance(value, Schedule) else value  # type: ignore[no-any-return]

    def _unresolved(self) -> bool:
        return self._at() is None and any(isinstance(value, Schedule) for value in self.guidance_scales)
