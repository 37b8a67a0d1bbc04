"""A pass of the model, and what runs passes: one after another, or as one batch.

An :class:`Executor` is how passes are executed and nothing else: it gets the input and the passes that a step needs,
and returns their predictions by name. Which passes those are, and what becomes of the predictions, is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ..core.conditions import Condition, Conditions
from .batching import Buffers, Padding

__all__ = ["Batched", "Executor", "Pass", "Sequential", "own_memory", "passes_of", "prediction_of"]


def prediction_of(result: Any) -> Tensor:
    """The tensor in what a model returned: itself, diffusers' ``.sample``, or the first of a tuple."""
    if isinstance(result, Tensor):
        return result
    if isinstance(getattr(result, "sample", None), Tensor):
        return result.sample  # type: ignore[no-any-return]
    if isinstance(result, tuple) and result and isinstance(result[0], Tensor):
        return result[0]
    raise TypeError(f"model: expected a tensor, an output with .sample, or a tuple, got {type(result).__name__}")


def own_memory(result: Tensor) -> Tensor:
    """Return a copy of what a model gave, for what is read after the model's next call.

    A model may write every result into one buffer: an engine, a CUDA graph made by hand. Nothing that can be asked of
    a tensor tells, and its memory would hold the later pass.
    """
    return result.clone()


class Pass(NamedTuple):
    """One run of a model under one condition.

    Attributes:
        name: of the prediction.
        kwargs: the model's keyword arguments.
        model: called as ``model(x, t, **kwargs)``.
        context: makes a context manager to run in, or None.
        take: from what the model returns to the prediction.
    """

    name: str
    kwargs: Mapping[str, Any]
    model: Callable[..., Any]
    context: Callable[[], AbstractContextManager[Any]] | None = None
    take: Callable[[Any], Tensor] = prediction_of

    def given(self, kwargs: Mapping[str, Any]) -> Pass:
        """Return the same pass with other keyword arguments; torch 2.8 can't trace ``_replace``."""
        return Pass(self.name, kwargs, self.model, self.context, self.take)

    def predict(self, x: Tensor, t: Any, names: str = "") -> Tensor:
        """The prediction for ``x`` at timestep ``t``.

        A model of diffusers whose cache is enabled is called in the cache's context of the pass, or of ``names``,
        those of a batch: what it keeps is kept for each.
        """
        if getattr(self.model, "is_cache_enabled", False) is True:
            with self.model.cache_context(names or self.name):  # type: ignore[attr-defined]
                return self._predict(x, t)
        return self._predict(x, t)

    def _predict(self, x: Tensor, t: Any) -> Tensor:
        if self.context is None:
            return self.take(self.model(x, t, **self.kwargs))
        with self.context():
            return self.take(self.model(x, t, **self.kwargs))


def passes_of(
    names: Sequence[str], conditions: Conditions, model: Callable[..., Any], take: Callable[[Any], Tensor]
) -> list[Pass]:
    """The passes of a step, in the order of ``names``."""
    passes = []
    for name in names:
        condition = conditions[name]
        if isinstance(condition, Condition):
            passes.append(Pass(name, condition.kwargs, condition.model or model, condition.context, take))
        else:
            passes.append(Pass(name, condition, model, None, take))
    return passes


@runtime_checkable
class Executor(Protocol):
    """An executor of passes."""

    def run(self, x: Tensor, t: Any, passes: Sequence[Pass]) -> dict[str, Tensor]:
        """The predictions of passes by name.

        Args:
            x: the noisy latent ``[B, ...]``; t: a number, a 0-dim tensor, or ``[B, ...]``.
            passes: one or more, with distinct names, in batch order.

        Returns:
            For each pass its prediction ``[B, ...]``, all of one shape, dtype and device. They may be views of one
            tensor; they are read before the next call and not written.
        """


class Sequential:
    """A call of the model for each pass: the least memory, and right for models whose samples interact.

    What a pass gave is copied before the next, since a model may write them all into one buffer.
    """

    def run(self, x: Tensor, t: Any, passes: Sequence[Pass]) -> dict[str, Tensor]:
        """See :class:`Executor`."""
        last = len(passes) - 1
        found: dict[str, Tensor] = {}
        for k, one in enumerate(passes):
            result = one.predict(x, t)
            found[one.name] = result if k == last else own_memory(result)
        return found


class Batched:
    """One call of the model for all passes that may share it; those of another model or context have their own.

    The model's input is one buffer that stays from step to step, and so are the conditions of a batch, which are put
    together once: see :meth:`reset`.

    Args:
        padding: how sequences of unequal length are brought to one, by argument name; see :class:`Padding`.
    """

    def __init__(self, padding: Mapping[str, str] | None = None) -> None:
        self.padding = None if padding is None else Padding(padding)
        self.buffers = Buffers()

    def reset(self) -> None:
        """Let go of the buffers.

        Conditions are taken as unchanged while they are the same tensors and PyTorch has counted no write to them;
        after a write that it doesn't count (``.data``, another library, a CUDA graph's replay) this is to be called.
        """
        self.buffers.clear()

    def run(self, x: Tensor, t: Any, passes: Sequence[Pass]) -> dict[str, Tensor]:
        """See :class:`Executor`.

        Raises:
            ValueError: if the conditions can't be one batch, naming the argument; nothing was run then.
        """
        first = passes[0]
        if len(passes) == 1:
            return {first.name: first.predict(x, t)}
        if all(one.model is first.model and one.context is first.context for one in passes):
            groups = [passes]
        else:
            by_model: dict[tuple[Any, Any], list[Pass]] = {}
            for one in passes:
                by_model.setdefault((id(one.model), one.context), []).append(one)
            groups = list(by_model.values())
        calls = [(group, self._arguments(group, x.shape[0])) for group in groups]
        found: dict[str, Tensor] = {}
        for k, (group, kwargs) in enumerate(calls):
            made = self._together(x, t, group, kwargs)
            found |= made if k == len(calls) - 1 else {name: own_memory(result) for name, result in made.items()}
        return found if len(groups) == 1 else {one.name: found[one.name] for one in passes}

    def _arguments(self, group: Sequence[Pass], batch: int) -> Mapping[str, Any]:
        if len(group) == 1:
            return group[0].kwargs
        return self.buffers.arguments([p.name for p in group], [p.kwargs for p in group], batch, self.padding)

    def _together(self, x: Tensor, t: Any, group: Sequence[Pass], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        count, batch = len(group), x.shape[0]
        if count == 1:
            return {group[0].name: group[0].predict(x, t)}
        by_sample = isinstance(t, Tensor) and t.dim() > 0 and t.shape[0] == batch  # [B], or [B, F] by frame or token.
        many_t = t.repeat(count, *[1] * (t.dim() - 1)) if by_sample else t
        names = "_".join(one.name for one in group)
        result = group[0].given(kwargs).predict(self.buffers.inputs(x, count), many_t, names)
        if result.shape[0] != count * batch:
            raise ValueError(
                f"model: expected {count * batch} predictions for {count} passes of {batch}, got {result.shape[0]}"
            )
        blocks = result.view(count, batch, *result.shape[1:]).unbind(0)
        return {one.name: block for one, block in zip(group, blocks, strict=True)}
