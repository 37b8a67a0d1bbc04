"""The backend of every device and every trace: a call in torch operations."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .functional import guide_rows

if TYPE_CHECKING:
    from ...call import Call

__all__ = ["run", "supports", "unavailable"]


def unavailable(device: torch.device) -> str | None:
    """Return why a device can't be used: torch operations run on all."""
    return None


def supports(call: Call) -> str | None:
    """Return why a call can't be run here: torch operations do all of them."""
    return None


def run(call: Call) -> list[Tensor]:
    """Run a call; a gradient is recorded unless native code could have run it as well."""
    rows = call if call.groups is None else call.by_rows()
    with torch.no_grad() if call.native else nullcontext():
        flat = [t.flatten(1) for t in rows.tensors]
        host = call.native and call.program.reduces and call.first.device.type == "cpu"
        made = guide_rows(call.program, flat, rows.values, call.merge, call.stats, host)
        shape = call.first.shape
        results = [made[k].view(shape) if call.groups is None else call.groups.back(made[k]) for k in call.results]
        return call.deliver(results)
