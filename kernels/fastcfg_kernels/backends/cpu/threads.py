"""Threads of a call of native code."""

from __future__ import annotations

import os

import torch

__all__ = ["ONE_THREAD", "threads_of"]

ONE_THREAD = 400_000
"""Elements of a call below which waking other threads costs more than they save."""


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def threads_of(elements: int) -> int:
    """Return the threads of a call.

    A forked process has one: OpenMP's others are in its parent, and it would wait for them.
    """
    return 1 if elements < ONE_THREAD or _forked else torch.get_num_threads()
