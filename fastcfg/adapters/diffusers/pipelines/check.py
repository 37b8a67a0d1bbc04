"""Check that a pipeline combined its passes as its form says."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["combination_error"]

_RESIDUAL = 0.05
"""Largest part of a result that may lie outside the span of its passes. Roundings in bfloat16 at scale 10 leave 0.02;
a result of other tensors has a part of order 1."""


def combination_error(result: Tensor, passes: Mapping[str, Tensor], factors: int = 1) -> str | None:
    """Why ``result`` is no combination of the passes that leads towards ``cond``, or None if it is one.

    The weights are those of least squares in float64, per sample, frame or row. Passes in the
    wrong order show as a negative weight of ``cond``, passes of another shape or kind as a residual.

    Args:
        result: ``[B, ...]``, what the pipeline handed on.
        passes: predictions ``[B, ...]`` by name.
        factors: leading dimensions over which the weights may vary, counted from the end where negative.
    """
    last = factors - 1 if factors > 0 else factors - 1 + result.dim()
    y = result.double().flatten(0, last).flatten(1)  # [R, N]
    if not bool(y.isfinite().all()):
        return None
    p = torch.stack([t.double().reshape(y.shape) for t in passes.values()], 1)  # [R, k, N]
    weights = torch.linalg.pinv(p @ p.mT, rtol=1e-12, hermitian=True) @ (p @ y.unsqueeze(-1))  # [R, k, 1]
    outside = (y - (weights.mT @ p).squeeze(1)).norm()
    if bool(outside > _RESIDUAL * y.norm()):
        return f"{float(outside / y.norm()):.0%} of it is no combination of {', '.join(passes)}"
    names = list(passes)
    others = [name for name in names if name != "cond"]
    if "cond" not in names or not others:
        return None
    cond = p[:, names.index("cond")]
    apart = min(float((cond - p[:, names.index(name)]).norm() / cond.norm()) for name in others)
    weight = float(weights[:, names.index("cond")].mean())
    noise = torch.finfo(result.dtype).eps
    if weight <= 0 and apart > 32 * noise:
        return f"the weight of cond in it is {weight:.2g}, so that the passes {', '.join(names)} are not in this order"
    return None
