"""transformers' guidance of autoregressive models, run as installed (written against 5.x)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast

__all__ = ["unbatched_cfg"]


def unbatched_cfg(*, uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """``UnbatchedClassifierFreeGuidanceLogitsProcessor`` on given logits ``[B, V]``.

    A stand-in model returns ``uncond``.  Defects: a token at −inf in ``uncond`` is NaN, whatever ``cond``
    says (unless s = 1, which returns ``cond``'s log-softmax); log-softmax is computed in the dtype of the
    logits.
    """

    def model(input_ids: Tensor, **_: Any) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=uncond[:, None, :])

    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, model)
    return processor(torch.zeros(cond.shape[0], 1, dtype=torch.long), cond)
