"""Fused counterparts of diffusers' guiders with a weakened pass: the same names, arguments and config."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.guiders import (
    AutoGuidance,
    LTX2Guidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
)
from torch import Tensor

from ....rules import CFG, LTX2, Autoguidance, Perturbed, Rule
from .arguments import FusedOutput
from .core import FusedGuider
from .layers import LayerSwitch, own_configs
from .smoothing import blurred_layers
from .switching import SwitchGuider

__all__ = [
    "FusedAutoGuidance",
    "FusedLTX2Guidance",
    "FusedPerturbedAttentionGuidance",
    "FusedSkipLayerGuidance",
    "FusedSmoothedEnergyGuidance",
]


class FusedAutoGuidance(SwitchGuider, AutoGuidance, eager=True):
    """diffusers' ``AutoGuidance`` by :class:`fastcfg.Autoguidance`.

    As in diffusers, the pass with skipped layers takes the *negative* inputs; the paper (2406.02507) weakens the
    conditional pass: give the pipeline the prompt as the negative prompt too, or use :class:`.RuleGuidance`.
    ``auto_guidance_layers`` works (diffusers: TypeError when it is applied; its config works).
    """

    auto_guidance_config: list[Any]

    def _ready(self) -> None:
        self.auto_guidance_config = own_configs(self.auto_guidance_config)
        super()._ready()

    def _rule(self) -> Rule:
        base: Any = "cond" if self.use_original_formulation else "perturbed"
        return Autoguidance(self._value("guidance_scale"), base=base)

    def _sources(self) -> dict[str, str]:
        return {"perturbed": "pred_uncond", "cond": "pred_cond"}

    def _layers(self, denoiser: torch.nn.Module) -> LayerSwitch:
        return LayerSwitch(denoiser, self.auto_guidance_config)

    def _is_weak(self, name: str) -> bool:
        return name == "pred_uncond"

    def _is_ag_enabled(self) -> bool:
        return self._guided()


class _WithPerturbed(SwitchGuider, wrap=False):
    """CFG and a perturbed pass, each in its window; at a step without one of them its pass is not run.

    Without CFG the perturbed prediction is the base, as in diffusers; its pass runs with the conditional inputs and
    is perturbed (diffusers: it gets the negative inputs, and no perturbation).
    """

    _weak = "pred_cond_skip"
    _weak_scale = "skip_layer_guidance_scale"
    _weak_window = ("skip_layer_guidance_start", "skip_layer_guidance_stop")

    def _cfg(self) -> bool:
        return super()._guided()

    def _weakened(self) -> bool:
        start, stop = (getattr(self, name) for name in self._weak_window)
        return self._enabled and self._within(start, stop, strict=True) and not self._is_at(self._weak_scale, 0.0)

    def _guided(self) -> bool:
        return self._cfg() or self._weakened()

    def _passes(self) -> tuple[tuple[str, int], ...]:
        uncond = (("pred_uncond", 1),) if self._cfg() else ()
        weak = ((self._weak, 0),) if self._weakened() else ()
        return (("pred_cond", 0), *uncond, *weak)

    def _sources(self) -> dict[str, str]:
        return super()._sources() | {"perturbed": self._weak}

    def _rule(self) -> Rule:
        if not self._weakened():
            return CFG(self._value("guidance_scale"), base=self._base)
        weak = self._value(self._weak_scale)
        if not self._cfg():
            base: Any = "cond" if self.use_original_formulation else "perturbed"
            return Autoguidance(weak, base=base)
        return Perturbed(self._value("guidance_scale"), weak, base=self._base)

    def _parameters(self) -> dict[str, str]:
        if not self._cfg():
            return {"scale": self._weak_scale}
        return {"scale": "guidance_scale", "perturbed_scale": self._weak_scale}

    def _layers(self, denoiser: torch.nn.Module) -> LayerSwitch:
        """The switch of what the weak pass weakens."""
        raise NotImplementedError

    def _is_weak(self, name: str) -> bool:
        return name == self._weak


class _WithSkippedLayers(_WithPerturbed, wrap=False):
    skip_layer_config: list[Any]

    def _ready(self) -> None:
        self.skip_layer_config = own_configs(self.skip_layer_config)
        super()._ready()

    def _layers(self, denoiser: torch.nn.Module) -> LayerSwitch:
        return LayerSwitch(denoiser, self.skip_layer_config)

    def _is_cfg_enabled(self) -> bool:
        return self._cfg()

    def _is_slg_enabled(self) -> bool:
        return self._weakened()

    def forward(
        self, pred_cond: Tensor, pred_uncond: Tensor | None = None, pred_cond_skip: Tensor | None = None
    ) -> FusedOutput:
        """As :meth:`.FusedGuider.forward`, with the perturbed prediction."""
        return self._guide({"pred_cond": pred_cond, "pred_uncond": pred_uncond, "pred_cond_skip": pred_cond_skip})


class FusedSkipLayerGuidance(
    _WithSkippedLayers, SkipLayerGuidance, eager=True, scales=("guidance_scale", "skip_layer_guidance_scale")
):
    """diffusers' ``SkipLayerGuidance`` (SLG, STG) by :class:`fastcfg.Perturbed`.

    Where CFG is off, the skip pass runs with the conditional inputs and skips its layers; diffusers gives it the
    negative prompt and skips nothing. ``skip_layer_guidance_layers`` works (diffusers: TypeError when it is applied;
    its config works).
    """


class FusedPerturbedAttentionGuidance(
    _WithSkippedLayers,
    PerturbedAttentionGuidance,
    eager=True,
    scales={"guidance_scale": "guidance_scale", "perturbed_guidance_scale": "skip_layer_guidance_scale"},
):
    """diffusers' ``PerturbedAttentionGuidance`` by :class:`fastcfg.Perturbed`; as :class:`FusedSkipLayerGuidance`.

    A single number of ``perturbed_guidance_layers`` works (diffusers: TypeError where it is applied), and so does any
    attention processor (diffusers: ValueError for those that it has not registered, Wan's among them).
    """


class FusedSmoothedEnergyGuidance(
    _WithPerturbed, SmoothedEnergyGuidance, eager=True, scales=("guidance_scale", "seg_guidance_scale")
):
    """diffusers' ``SmoothedEnergyGuidance`` (SEG) by :class:`fastcfg.Perturbed`, with queries that are really blurred.

    diffusers' own never counts its passes, so that its hook is never applied; its layers have to be lists of numbers;
    its blur takes the mean where the width is finite and a box where it is infinite, and ignores
    ``seg_blur_threshold_inf``. Here a width beyond the threshold is the mean of the queries, any other a Gaussian
    (2408.00760, sec. 4). Queries are taken for a square image; those beyond the largest square stay as they are.
    """

    _weak = "pred_cond_seg"
    _weak_scale = "seg_guidance_scale"
    _weak_window = ("seg_guidance_start", "seg_guidance_stop")

    seg_guidance_config: list[Any]

    def _ready(self) -> None:
        self.seg_guidance_config = own_configs(self.seg_guidance_config)
        super()._ready()

    def _is_cfg_enabled(self) -> bool:
        return self._cfg()

    def _is_seg_enabled(self) -> bool:
        return self._weakened()

    def _layers(self, denoiser: torch.nn.Module) -> LayerSwitch:
        width, infinite = self.seg_blur_sigma, self.seg_blur_threshold_inf
        return LayerSwitch(denoiser, self.seg_guidance_config, partial(blurred_layers, sigma=width, threshold=infinite))

    def forward(
        self, pred_cond: Tensor, pred_uncond: Tensor | None = None, pred_cond_seg: Tensor | None = None
    ) -> FusedOutput:
        """As :meth:`.FusedGuider.forward`, with the smoothed prediction."""
        return self._guide({"pred_cond": pred_cond, "pred_uncond": pred_uncond, "pred_cond_seg": pred_cond_seg})


class FusedLTX2Guidance(
    FusedGuider, LTX2Guidance, eager=True, scales=("guidance_scale", "stg_scale", "modality_scale")
):
    """diffusers' ``LTX2Guidance`` by :class:`fastcfg.LTX2`, on x0 predictions as its pipeline hands them over."""

    def _parameters(self) -> dict[str, str]:
        return {"scale": "guidance_scale", "perturbed_scale": "stg_scale", "modality_scale": "modality_scale"}

    def _on(self, name: str, neutral: float) -> bool:
        return bool(self._enabled) and self._within(self._start, self._stop) and not self._is_at(name, neutral)

    def is_cfg_enabled(self) -> bool:
        """Return whether the unconditional pass is run."""
        return self._on("guidance_scale", 1.0)

    def is_stg_enabled(self) -> bool:
        """Return whether the spatio-temporally perturbed pass is run."""
        return self._on("stg_scale", 0.0)

    def is_modality_enabled(self) -> bool:
        """Return whether the pass without the other modality is run."""
        return self._on("modality_scale", 1.0)

    def _guided(self) -> bool:
        return len(self._passes()) > 1

    def _passes(self) -> tuple[tuple[str, int], ...]:
        return tuple((name, self._PREDICTION_INDEX[name]) for name in self.active_predictions())

    @property
    def is_conditional(self) -> bool:
        """True, as in diffusers: the pipeline sets what differs between the passes."""
        return True

    def _sources(self) -> dict[str, str]:
        names = {"uncond": "pred_uncond", "perturbed": "pred_cond_stg", "modality": "pred_cond_modality"}
        active = self.active_predictions()
        # In a pass that is not run the term is zero whatever stands there.
        return {"cond": "pred_cond"} | {k: name if name in active else "pred_cond" for k, name in names.items()}

    def _rule(self) -> Rule:
        rule = LTX2(*(self._value(name) for name in self._scales))
        return rule if self._numerics == "eager" or self._tensors() else rule.simplify()

    def forward(
        self,
        pred_cond: Tensor,
        pred_uncond: Tensor | None = None,
        pred_cond_stg: Tensor | None = None,
        pred_cond_modality: Tensor | None = None,
    ) -> FusedOutput:
        """As :meth:`.FusedGuider.forward`, with the predictions of the other two passes."""
        return self._guide(
            {
                "pred_cond": pred_cond,
                "pred_uncond": pred_uncond,
                "pred_cond_stg": pred_cond_stg,
                "pred_cond_modality": pred_cond_modality,
            }
        )
