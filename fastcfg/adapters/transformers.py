"""Guidance of autoregressive models in transformers' ``generate``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
except ImportError as error:
    raise ImportError(
        f"fastcfg.adapters.transformers needs transformers ({error}); pip install transformers"
    ) from error

from ..methods.logits import guide_logits

__all__ = ["FusedClassifierFreeGuidanceLogitsProcessor"]


class FusedClassifierFreeGuidanceLogitsProcessor(UnbatchedClassifierFreeGuidanceLogitsProcessor):  # type: ignore[misc]
    """transformers' ``UnbatchedClassifierFreeGuidanceLogitsProcessor`` with :func:`fastcfg.guide_logits` inside.

    The arguments are the parent's. It differs where the parent is wrong:

    - a token at -inf is -inf and not NaN, and half types are computed in float32;
    - a processor may be used for more than one ``generate``, each of which begins anew (see also :meth:`reset`);
    - with beams the unconditional branch follows each hypothesis: where beams change places its cache is made again,
      and rows of ``unconditional_ids`` are repeated for the beams and returned sequences of a prompt;
    - left padding in ``unconditional_attention_mask`` counts in the positions, as it does in ``generate``.

    ``guidance_scale`` may also be a tensor ``[B]``. Give it as ``generate(..., logits_processor=[processor])``, with
    ``generate``'s own ``guidance_scale`` unset.
    """

    _seen: Tensor | None = None
    _prompt = 0

    def __init__(
        self,
        guidance_scale: float | Tensor,
        model: Any,
        unconditional_ids: Tensor | None = None,
        unconditional_attention_mask: Tensor | None = None,
        use_cache: bool = True,
    ) -> None:
        super().__init__(guidance_scale, model, unconditional_ids, unconditional_attention_mask, use_cache)
        self._given = unconditional_ids, unconditional_attention_mask

    def reset(self) -> None:
        """Begin a new generation."""
        self._seen = None
        self.unconditional_context["past_key_values"] = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guided log-probabilities ``[B, V]``, not normalised, in the dtype of ``scores``.

        Args:
            input_ids: ``[B, L]``, the prompt and what was generated; scores: logits ``[B, V]``.

        Raises:
            ValueError: if B is no multiple of the rows of ``unconditional_ids``, or of the scale.
        """
        scale = self.guidance_scale
        if not isinstance(scale, Tensor) and scale == 1:
            return guide_logits(scores, scores, 1.0)
        logits = self.get_unconditional_logits(input_ids)[:, -1]
        if isinstance(scale, Tensor):
            scale = scale.to(device=scores.device, dtype=torch.promote_types(scale.dtype, torch.float32))
            scale = _repeated("guidance_scale", scale, scores.shape[0]) if scale.dim() else scale
        return guide_logits(scores, logits.to(device=scores.device, dtype=scores.dtype), scale)

    def get_unconditional_logits(self, input_ids: Tensor) -> Tensor:
        """Logits ``[B, L', V]`` of the unconditional branch, the last of which are the next token's."""
        context, seen = self.unconditional_context, self._seen
        longer = seen is not None and input_ids.shape == (seen.shape[0], seen.shape[1] + 1)
        if not longer or seen is None or not torch.equal(input_ids[:, : self._prompt], seen[:, : self._prompt]):
            self.reset()
            self._prompt = input_ids.shape[1]
        elif not torch.equal(input_ids[:, :-1], seen):
            context["past_key_values"] = None  # Beams changed places.
        self._seen = input_ids
        ids, mask = self._branch(input_ids)
        cached = context["past_key_values"] is not None
        arguments: dict[str, Any] = {"use_cache": context["use_cache"], "past_key_values": context["past_key_values"]}
        if self._given[1] is not None:
            arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -1 if cached else 0 :]
        out = self.model(ids[:, -1:] if cached else ids, attention_mask=mask, **arguments)
        context["past_key_values"] = out.get("past_key_values", None) if context["use_cache"] else None
        logits: Tensor = out.logits
        return logits

    def _branch(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The unconditional branch's tokens and mask ``[B, L']``: its prompt, and what was generated."""
        ids, mask = self._given
        rows = input_ids.shape[0]
        generated = input_ids[:, self._prompt :]
        if ids is None:
            ids = input_ids[:, self._prompt - 1 : self._prompt]
        ids = _repeated("unconditional_ids", ids.to(input_ids.device), rows)
        if mask is None:
            mask = torch.ones_like(ids)
        mask = _repeated("unconditional_attention_mask", mask.to(input_ids.device, torch.long), rows)
        return torch.cat([ids, generated], dim=1), torch.cat([mask, torch.ones_like(generated)], dim=1)


def _repeated(name: str, value: Tensor, rows: int) -> Tensor:
    """A row for each of the rows that ``generate`` makes of a prompt, in their order."""
    if rows % value.shape[0]:
        raise ValueError(f"{name}: expected a row for each prompt, {rows} or a divisor of it, got {value.shape[0]}")
    return value.repeat_interleave(rows // value.shape[0], dim=0)
