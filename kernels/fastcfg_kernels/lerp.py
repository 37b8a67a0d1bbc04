"""A guidance that is one ``torch.lerp``: two predictions, no sums, no clamp, and weight 1 of the first.

``torch.lerp`` is one kernel already, which ``torch.compile`` can fuse with what stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .call import Call
from .formula.program import Program
from .host import weigh_on_host
from .memory import collide

__all__ = ["guide_lerp", "lerp_weight"]


def lerp_weight(program: Program, values: Sequence[Any]) -> float | None:
    """Return the weight of ``torch.lerp`` where a program with these parameters is one, else None.

    Args:
        values: numbers, or tensors; a value for each sample, or one on a device, makes it no lerp.
    """
    if not program.is_lerp:
        return None
    if any([isinstance(v, Tensor) and (v.dim() > 0 or v.device.type != "cpu") for v in values]):
        return None
    base, delta = weigh_on_host(program, (), 0, [v.item() if isinstance(v, Tensor) else v for v in values])
    return delta if base == 1 else None


def guide_lerp(call: Call) -> list[Tensor] | None:
    """Run a call as ``torch.lerp``; None where it is none, or its result is wanted in another dtype.

    Where the call is traced or differentiated, its numbers alone become the weight: a tensor has to stay one.
    """
    if not call.program.is_lerp or call.merge is not None or len(call.targets) != 1:
        return None
    [(_, target)] = call.targets
    out = target if isinstance(target, Tensor) else None
    if not call.native and (out is not None or any([isinstance(v, Tensor) for v in call.values])):
        return None
    base, other = call.inputs
    if (target if out is None else out.dtype) is not base.dtype:
        return None
    weight = lerp_weight(call.program, call.values)
    if weight is None:
        return None
    if out is None or any([collide(out, p) for p in call.inputs]):
        made = torch.lerp(base, other, weight)
        return [made if out is None else out.copy_(made)]
    return [torch.lerp(base, other, weight, out=out)]
