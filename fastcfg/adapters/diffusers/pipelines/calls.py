"""A call of a pipeline's denoiser: which passes it was, and the same call under another condition."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....core.conditions import Condition
from .forms import PipelineForm
from .inputs import bind, blocks, with_condition
from .parts import named_blocks, output_tensor

__all__ = ["Call"]


@dataclass
class Call:
    """A call of the denoiser.

    Attributes:
        names: its passes in batch order, or None until what the pipeline made of them says how many there are.
        args, kwargs: its inputs; output: the prediction ``[k*B, ...]``; handed: what the pipeline got.
    """

    denoiser: Any
    names: tuple[str, ...] | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor
    handed: Any

    def passes(self, form: PipelineForm, made: Tensor) -> dict[str, Tensor]:
        """The output of each pass by name, ``made`` being what the pipeline made of them all."""
        if self.names is None:
            found = named_blocks(form, self.output, made)
            self.names = tuple(found)
            return found
        return dict(zip(self.names, self.output.chunk(len(self.names)), strict=True))

    def under(self, name: str, condition: Mapping[str, Any] | Condition) -> Tensor:
        """The denoiser's output under a condition, with the conditional pass's inputs for all else.

        A :class:`fastcfg.Condition` may bring another model, and a context to run in: layers that are weakened.

        Raises:
            ValueError: naming ``conditions``, if those can't be told from the batch's.
        """
        names = self.names or ()
        inputs = bind(self.denoiser, self.args, self.kwargs)
        if len(names) > 1:
            try:
                inputs = blocks(inputs, [names.index("cond")], len(names))
            except ValueError as error:
                raise ValueError(f"conditions: {name!r} can't be run: {error}") from None
        whole = condition if isinstance(condition, Condition) else Condition(condition)
        denoiser = self.denoiser if whole.model is None else whole.model
        inputs = with_condition(self.denoiser, inputs, whole.kwargs, self.output.shape[0] // len(names))
        cached = getattr(denoiser, "cache_context", None)
        weakened = nullcontext() if whole.context is None else whole.context()
        with weakened, nullcontext() if cached is None else cached(name):
            return output_tensor(denoiser(**inputs))
