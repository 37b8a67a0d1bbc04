"""Hand-over of a denoiser's outputs to a pipeline that is guided."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .parts import with_output

__all__ = ["Handover"]


class Handover:
    """All of an output until the pipeline's combination has been checked, then a sliver of it.

    A pipeline combines its passes whether or not the result is used. From the first entry of their last dimension
    that costs next to nothing. What it would have made of the whole has the shape that it had when it was checked.
    """

    def __init__(self) -> None:
        self._output: torch.Size | None = None
        self._made: torch.Size | None = None

    @property
    def checked(self) -> bool:
        """Return whether the pipeline's combination has been checked for outputs of this shape."""
        return self._made is not None

    def check_passed(self, output: Tensor, made: Tensor) -> None:
        """Take note of the shapes of a denoiser's ``output`` and of what was made of it."""
        self._output, self._made = output.shape[1:], made.shape[1:]

    def hand_on(self, result: Any, output: Tensor) -> Any:
        """Return what the pipeline gets: the denoiser's ``result``, or the same with a sliver of its ``output``."""
        if self._output != output.shape[1:]:
            self._output = self._made = None
            return result
        return with_output(result, output[..., :1])

    def whole(self, made: Tensor) -> Tensor:
        """Return what the pipeline made, or a tensor without data of the shape that it would have made of the whole."""
        if self._made is None:
            return made
        return torch.empty((made.shape[0], *self._made), dtype=made.dtype, device="meta")
