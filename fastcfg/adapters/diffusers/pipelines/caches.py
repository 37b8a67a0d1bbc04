"""diffusers' caches beside passes that a step leaves out.

A cache keeps what blocks gave at the step before, by the name of the call's context. A part of a batch has another
shape than the batch, and a pass that comes back after a gap finds what was kept before it, while the other's is of the
last step; so such calls get contexts of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

__all__ = ["Caches", "one_state"]

_ONE_STATE = ("PyramidAttentionBroadcastConfig", "FasterCacheConfig")
"""Configurations of caches that keep one state for all calls, which have to be all made."""


def _config(denoiser: Any) -> Any:
    return getattr(getattr(denoiser, "_orig_mod", denoiser), "_cache_config", None)


def one_state(denoiser: Any) -> str | None:
    """The name of a denoiser's cache, if it has one that knows no contexts."""
    name = type(_config(denoiser)).__name__
    return name.removesuffix("Config") if name in _ONE_STATE else None


class Caches:
    """The contexts of a run's calls."""

    def __init__(self) -> None:
        self._last: frozenset[str] | None = None
        self._returns = 0

    def begin(self, needed: set[str]) -> None:
        """Take note of a step's passes: where one comes back after a gap, all contexts are new."""
        if self._last is not None and not needed <= self._last:
            self._returns += 1
        self._last = frozenset(needed)

    def context(self, denoiser: Any, names: Sequence[str], *, part: bool) -> AbstractContextManager[Any]:
        """The context of a call of some passes.

        Args:
            part: whether they are a part of the pipeline's batch. A whole one keeps the pipeline's own context until
                a pass has come back.
        """
        if _config(denoiser) is None or not (part or self._returns):
            return nullcontext()
        name = "_".join((*names, *([str(self._returns)] if self._returns else [])))
        return denoiser.cache_context(name)  # type: ignore[no-any-return]
