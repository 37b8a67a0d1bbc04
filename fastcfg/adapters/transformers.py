"""Guidance of autoregressive models in transformers' ``generate``."""

from __future__ import annotations

import torch
from torch import Tensor

try:
    from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
except ImportError as error:
    raise ImportError(
        f"fastcfg.adapters.transformers needs transformers ({error}); pip install transformers"
    ) from error

from ..logits import guide_logits

__all__ = ["FusedClassifierFreeGuidanceLogitsProcessor"]


class FusedClassifierFreeGuidanceLogitsProcessor(UnbatchedClassifierFreeGuidanceLogitsProcessor):  # type: ignore[misc]
    """transformers' ``UnbatchedClassifierFreeGuidanceLogitsProcessor`` with :func:`fastcfg.guide_logits` inside.

    The arguments, the unconditional pass and its cache are the parent's. It differs where the parent is wrong: a
    token at -inf is -inf and not NaN, half types are computed in float32, and ``guidance_scale`` may also be a
    tensor ``[B]``. Give it as ``generate(..., logits_processor=[FusedClassifierFreeGuidanceLogitsProcessor(...)])``
    and leave ``generate``'s own ``guidance_scale`` unset.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guided log-probabilities ``[B, V]``, not normalised, in the dtype of ``scores``."""
        if not isinstance(self.guidance_scale, Tensor) and self.guidance_scale == 1:
            return guide_logits(scores, scores, 1.0)
        logits = self.get_unconditional_logits(input_ids)[:, -1]
        scale = self.guidance_scale
        if isinstance(scale, Tensor):
            scale = scale.to(device=scores.device, dtype=torch.promote_types(scale.dtype, torch.float32))
        return guide_logits(scores, logits.to(device=scores.device, dtype=scores.dtype), scale)
