"""Guidance of autoregressive models in transformers' ``generate``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

try:
    from transformers.generation.logits_process import (
        LogitsProcessor,
        LogitsProcessorList,
        UnbatchedClassifierFreeGuidanceLogitsProcessor,
    )
except ImportError as error:
    raise ImportError(
        f"fastcfg.adapters.transformers needs transformers ({error}); pip install transformers"
    ) from error

from ..methods.logits import guide_logits
from ..validate import check_choice

__all__ = ["BatchedGuidanceLogitsProcessor", "FusedClassifierFreeGuidanceLogitsProcessor"]


class BatchedGuidanceLogitsProcessor(LogitsProcessor):  # type: ignore[misc]
    """Guidance where the model runs ``[cond, uncond]`` as one batch (MusicGen, Dia, Parler, Janus).

    It takes the place of the model's own processor by :meth:`in_place`::

        with BatchedGuidanceLogitsProcessor(torch.tensor([2.0, 4.0])).in_place(model):
            model.generate(**inputs, guidance_scale=3.0)  # Turns the model's batch on; only our scale counts.

    Args:
        guidance_scale: a number, or a tensor ``[B]`` with one for each prompt; a prompt's scale is that of all its rows
            (codebooks, returned sequences), which are next to each other.
        base: ``"uncond"``: ``u + s (c - u)``; ``"cond"``: ``c + s (c - u)``, as in Dia.
        guidance_top_k: keep the conditional logits of so many tokens, chosen by the guided ones, as Dia does.

    Raises:
        ValueError: naming the argument.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        guidance_scale: float | Tensor,
        base: Literal["uncond", "cond"] = "uncond",
        guidance_top_k: int | None = None,
    ) -> None:
        check_choice("base", base, ("uncond", "cond"))
        if guidance_top_k is not None and guidance_top_k < 1:
            raise ValueError(f"guidance_top_k: expected a positive number, got {guidance_top_k}")
        self.guidance_scale, self.base, self.guidance_top_k = guidance_scale, base, guidance_top_k

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guided log-probabilities ``[N, V]``, not normalised, of logits ``[2N, V]``, the conditional ones first.

        Raises:
            ValueError: unless there are twice as many rows of logits as of ``input_ids``, or if N is no multiple of the
                scale's length.
        """
        if scores.shape[0] != 2 * input_ids.shape[0]:
            raise ValueError(
                f"scores: expected two rows for each of {input_ids.shape[0]} of input_ids, [cond, uncond], got "
                f"{scores.shape[0]}; for a model that does not double its batch use "
                "FusedClassifierFreeGuidanceLogitsProcessor"
            )
        cond, uncond = scores.chunk(2)
        scale = _scale_for(self.guidance_scale, cond)
        guided = guide_logits(cond, uncond, scale + 1.0 if self.base == "cond" else scale)
        if self.guidance_top_k is None:
            return guided
        kept = guided.topk(min(self.guidance_top_k, guided.shape[-1]), dim=-1).indices
        return torch.full_like(cond, -torch.inf).scatter(-1, kept, cond.gather(-1, kept))

    @contextmanager
    def in_place(self, model: Any) -> Iterator[None]:
        """Let this take the place of a model's own batched guidance in ``generate`` meanwhile.

        The model is untouched but for one method of this instance. A ``generate`` without guidance of its own
        (``guidance_scale`` 1 or unset) has nothing to replace, and raises.
        """
        own = model._get_logits_processor

        def processors(*args: Any, **kwargs: Any) -> Any:
            found = list(own(*args, **kwargs))
            theirs = [i for i, p in enumerate(found) if _is_batched(p)]
            if not theirs:
                raise ValueError(
                    f"guidance_scale: {type(model).__name__} has no batched guidance on in this generate; give it "
                    "guidance_scale above 1 (its value has no effect)"
                )
            found[theirs[0]] = self
            return LogitsProcessorList(p for p in found if not _is_batched(p))

        vars(model)["_get_logits_processor"] = processors
        try:
            yield
        finally:
            del vars(model)["_get_logits_processor"]


def _is_batched(processor: Any) -> bool:
    """Return whether a processor halves a batch that its model doubled; transformers' own, or one named like it."""
    name = type(processor).__name__
    return name.endswith("ClassifierFreeGuidanceLogitsProcessor") and not name.startswith(("Unbatched", "Fused"))


def _scale_for(scale: float | Tensor, scores: Tensor) -> float | Tensor:
    """A scale where the logits are, in at least float32, one for each row where it is one for each prompt."""
    if not isinstance(scale, Tensor):
        return scale
    scale = scale.to(device=scores.device, dtype=torch.promote_types(scale.dtype, torch.float32))
    return _repeated("guidance_scale", scale, scores.shape[0]) if scale.dim() else scale


class FusedClassifierFreeGuidanceLogitsProcessor(UnbatchedClassifierFreeGuidanceLogitsProcessor):  # type: ignore[misc]
    """transformers' ``UnbatchedClassifierFreeGuidanceLogitsProcessor`` with :func:`fastcfg.guide_logits` inside.

    The arguments are the parent's. It differs where the parent is wrong:

    - a token at -inf is -inf and not NaN, and half types are computed in float32;
    - a processor may be used for more than one ``generate``, each of which begins anew (see also :meth:`reset`);
    - with beams the unconditional branch follows each hypothesis, and rows of ``unconditional_ids`` are repeated for
      the beams and returned sequences of a prompt;
    - in speculative decoding (prompt lookup, an assistant) the branch goes back to the accepted tokens, so that greedy
      text is what it is without;
    - an encoder-decoder's encoder gets ``unconditional_ids`` once, and its decoder the text so far;
    - left padding in ``unconditional_attention_mask`` counts in the positions, as it does in ``generate``.

    A model that doubles its batch (MusicGen, Dia) and continuous batching are refused by name. ``guidance_scale`` may
    also be a tensor ``[B]``. Give it as ``generate(..., logits_processor=[processor])``, with ``generate``'s own
    ``guidance_scale`` unset.
    """

    supports_continuous_batching = False

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
        self._use_cache = use_cache
        self._encoded = bool(getattr(model.config, "is_encoder_decoder", False))
        if self._encoded and unconditional_ids is None:
            raise ValueError(
                f"unconditional_ids: {type(model).__name__} is an encoder-decoder; give the negative prompt for its "
                "encoder"
            )
        takes = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in takes else "past_key_values"
        self.reset()

    def reset(self) -> None:
        """Begin a new generation.

        One is told by its prompt; only a prompt that is another's with the text that followed it needs this.
        """
        self._seen: Tensor | None = None
        self._prompt = 0
        self._encoder: dict[str, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self._cache: Any = None
        self._held: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guided log-probabilities ``[B, V]``, not normalised, in the dtype of ``scores``.

        Args:
            input_ids: ``[B, L]``, the prompt and what was generated; scores: logits ``[B, V]``.

        Raises:
            ValueError: if B is no multiple of the rows of ``unconditional_ids``, or of the scale; if the logits are of
                another batch than ``input_ids``.
        """
        if scores.shape[0] != input_ids.shape[0]:
            doubled = scores.shape[0] == 2 * input_ids.shape[0]
            raise ValueError(
                f"scores: expected a row for each of {input_ids.shape[0]} of input_ids, got {scores.shape[0]}: "
                + (
                    f"{type(self.model).__name__} doubles its batch; use BatchedGuidanceLogitsProcessor"
                    if doubled
                    else "continuous batching has no unconditional branch of its own; use generate"
                )
            )
        scale = self.guidance_scale
        if not isinstance(scale, Tensor) and scale == 1:
            return guide_logits(scores, scores, 1.0)
        logits = self.get_unconditional_logits(input_ids)[:, -1]
        return guide_logits(scores, logits.to(device=scores.device, dtype=scores.dtype), _scale_for(scale, scores))

    def get_unconditional_logits(self, input_ids: Tensor) -> Tensor:
        """Logits ``[B, L', V]`` of the unconditional branch, the last of which are the next token's."""
        if not self._continues(input_ids):
            self.reset()
            self._prompt = input_ids.shape[1]
        self._seen = input_ids
        ids, mask = self._branch(input_ids)
        kept = self._back_to(ids)
        arguments: dict[str, Any] = {"use_cache": self._use_cache}
        if self._cache is not None:
            arguments[self._cache_name] = self._cache
        if self._encoded:
            arguments |= self._encode(input_ids.shape[0], input_ids.device)
            out = self.model(decoder_input_ids=ids[:, kept:], **arguments)
        else:
            if self._given[1] is not None:
                arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, kept:]
            out = self.model(ids[:, kept:], attention_mask=mask, **arguments)
        if self._use_cache:
            self._cache = out.get(self._cache_name, None)
            self._held = None if self._cache is None else ids
        logits: Tensor = out.logits
        return logits

    def _continues(self, input_ids: Tensor) -> bool:
        """Return whether a call is of the generation under way: a token further, or back at some that were accepted."""
        seen, length = self._seen, input_ids.shape[1]
        if seen is None or seen.shape[0] != input_ids.shape[0] or not self._prompt < length <= seen.shape[1] + 1:
            return False
        # Speculation tries tokens and takes the last of them back; beams change places and grow.
        back = length - 1 if length <= seen.shape[1] else self._prompt
        return torch.equal(input_ids[:, :back], seen[:, :back])

    def _back_to(self, ids: Tensor) -> int:
        """Let the cache hold a beginning of the branch's tokens, but the last, and return how many that are."""
        held = self._held
        if held is None or held.shape[0] != ids.shape[0]:
            self._forget()
            return 0
        shared = min(held.shape[1], ids.shape[1] - 1)
        same = (held[:, :shared] == ids[:, :shared]).all(0).long()
        kept = int(same.cumprod(0).sum())
        if (removed := held.shape[1] - kept) and not self._crop(removed):
            self._forget()
            return 0
        return kept

    def _crop(self, removed: int) -> bool:
        """Take tokens off the cache's end; False where it can't be done (windows, states without positions)."""
        if getattr(self.model, "_is_stateful", False):
            return False
        try:
            self._cache.crop(-removed)
        except (AttributeError, NotImplementedError, RuntimeError, ValueError):
            return False
        return True

    def _encode(self, rows: int, device: torch.device) -> dict[str, Any]:
        """The encoder's output for the unconditional prompt, made once for a generation."""
        if not self._encoder:
            ids, mask = self._given
            assert ids is not None
            mask = torch.ones_like(ids) if mask is None else mask
            ids = _repeated("unconditional_ids", ids.to(device), rows)
            mask = _repeated("unconditional_attention_mask", mask.to(device, torch.long), rows)
            encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask)
            self._encoder = {"encoder_outputs": encoded, "attention_mask": mask}
        return self._encoder

    def _branch(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The unconditional branch's tokens and mask ``[B, L']``: its prompt, and what was generated."""
        ids, mask = self._given
        if self._encoded:
            return input_ids, torch.ones_like(input_ids)
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
