"""Warnings that are worth saying once in a process."""

from __future__ import annotations

import warnings
from functools import cache

__all__ = ["warn_once"]


@cache
def warn_once(message: str) -> None:
    """Warn with ``message`` as a RuntimeWarning, the first time only."""
    warnings.warn(message, RuntimeWarning, stacklevel=3)
