"""Shadow mode: every fused result beside that of the torch path, for a deployment's first days or a suspicion.

``FASTCFG_SHADOW=warn`` or ``=raise`` turns it on before the import, :func:`shadow` at any time. It costs a second
guidance and waits for the device.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .backends.cpu.entry import enable

__all__ = ["compare", "on", "paused", "shadow", "span"]

MODES = ("off", "warn", "raise")
ROUNDINGS = 256
"""Roundings of the accumulator that two orders of the same sums may differ by, in their weights."""


def _checked(name: str, value: str) -> str:
    if value not in MODES:
        raise ValueError(f"{name}: expected one of {', '.join(MODES)}, got {value!r}")
    return value


_mode = _checked("environment variable FASTCFG_SHADOW", os.environ.get("FASTCFG_SHADOW") or "off")

enable(_mode == "off")

_local = threading.local()


def on() -> bool:
    """Return whether a call is to be compared."""
    return _mode != "off" and not getattr(_local, "paused", False)


@contextmanager
def paused() -> Iterator[None]:
    """Calls of this thread are not compared meanwhile."""
    _local.paused = True
    try:
        yield
    finally:
        _local.paused = False


def span(tensors: Sequence[Tensor]) -> Tensor:
    """The largest magnitude in each sample of tensors ``[B, ...]``, NaN aside: ``[B]``."""
    return torch.stack([t.flatten(1).abs().nan_to_num(nan=0.0).amax(1).double() for t in tensors]).amax(0)


def shadow(mode: str) -> None:
    """Turn shadow mode on or off in this process.

    Raises:
        ValueError: if ``mode`` is not ``"off"``, ``"warn"`` or ``"raise"``.
    """
    global _mode
    _mode = _checked("mode", mode)
    enable(_mode == "off")


def compare(results: Sequence[Tensor], expected: Sequence[Tensor], largest: Tensor) -> None:
    """Report results that differ from the torch path's by more than rounding.

    The bound of an element is two roundings in the result's dtype and :data:`ROUNDINGS` in the accumulator's.

    Args:
        results, expected: ``[B, ...]`` each.
        largest: :func:`span` of the inputs, as they were before the call, and of what was expected.

    Raises:
        ArithmeticError: in the mode ``"raise"``.
    """
    for k, (result, right) in enumerate(zip(results, expected, strict=True)):
        accumulator = torch.float64 if right.dtype == torch.float64 else torch.float32
        bound = (2 * torch.finfo(right.dtype).eps + ROUNDINGS * torch.finfo(accumulator).eps) * largest
        same = (result == right) | (result.isnan() & right.isnan())
        error = torch.where(same, 0.0, (result.double() - right.double()).abs()).flatten(1).amax(1)
        if bool((error <= bound).all()):
            continue
        sample = int((~(error <= bound)).nonzero()[0])
        message = (
            f"fastcfg shadow: result {k} differs from the torch path by {float(error[sample]):.3g} in sample {sample}, "
            f"where rounding is at most {float(bound[sample]):.3g}"
        )
        if _mode == "raise":
            raise ArithmeticError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)
