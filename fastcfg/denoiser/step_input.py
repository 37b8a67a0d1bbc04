"""The model's input as the step before has written it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..samplers.step import Step
from ..validate import Weight

__all__ = ["StepInput"]


class StepInput:
    """The model's input of the next step, and the latent that it was made of."""

    def __init__(self) -> None:
        self._latent: Tensor | None = None
        self._whole: Tensor | None = None
        self._scale: Weight = 1.0
        self._writes = 0

    def clear(self) -> None:
        """Let go of both."""
        self._latent = self._whole = None

    def take(self, x: Tensor, step: Step, copies: int, dtype: torch.dtype | None = None) -> Tensor:
        """``input_scale * x`` for each of ``copies`` passes, ``[copies * B, ...]``: what was given, or made anew."""
        whole = self._whole
        dtype = dtype or x.dtype
        shape = (copies * x.shape[0], *x.shape[1:])
        fits = whole is not None and whole.shape == shape and whole.dtype == dtype and whole.device == x.device
        if whole is None or not fits or whole.is_inference() != torch.is_inference_mode_enabled():
            self._latent = None
            return step.model_input(x, copies, dtype)
        if x is self._latent and not x.is_inference() and x._version == self._writes and self._scaled_for(step):
            return whole
        unscaled = not isinstance(step.input_scale, Tensor) and step.input_scale == 1
        whole.view(copies, *x.shape).copy_(x if unscaled else step.model_input(x, dtype=dtype))
        return whole

    def _scaled_for(self, step: Step) -> bool:
        return not isinstance(step.input_scale, Tensor) and step.input_scale == self._scale

    def give(self, latent: Tensor, whole: Tensor, scale: Weight) -> None:
        """Say that ``whole`` is the next step's input, ``scale * latent`` for each pass."""
        self._latent, self._whole = latent, whole
        self._scale = float("nan") if isinstance(scale, Tensor) else scale
        self._writes = 0 if latent.is_inference() else latent._version
