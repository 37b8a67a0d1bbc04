"""Guiders for diffusers' modular pipelines, with the same arguments as its own."""

from __future__ import annotations

from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor

from ...guidance import guide
from ...rules import CFG

__all__ = ["FusedClassifierFreeGuidance"]


class FusedClassifierFreeGuidance(ClassifierFreeGuidance):  # type: ignore[misc]
    """diffusers' ``ClassifierFreeGuidance`` with the fused rule behind the same arguments.

    Windows, batch preparation and the config round trip are the parent's. Where diffusers gives NaN for a
    prediction without spread, the rescale here leaves it as it is.
    """

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction ``[B, ...]`` of the conditional and the unconditional one.

        Outside the guider's window, or at a scale that leaves ``pred_cond``, that tensor itself is returned: the
        rescale of a prediction to its own spread changes nothing.
        """
        pred = pred_cond
        if self._is_cfg_enabled():
            rule = CFG(
                self.guidance_scale,
                max(self.guidance_rescale, 0.0),
                base="cond" if self.use_original_formulation else "uncond",
            )
            if pred_uncond is None:
                raise ValueError("pred_uncond: expected a tensor, guidance is enabled at this step")
            pred = guide(rule, uncond=pred_uncond, cond=pred_cond)
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)
