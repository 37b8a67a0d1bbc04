"""Launches the Triton kernels on tensors as they lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from .launch_plan import LaunchPlan, Strategy, plan_launch
from .layout import Layout, group_layout
from .program import Program
from .tiles import accumulator
from .triton_formula import interpreting, kernel_constants, unavailable

__all__ = ["OPTIONS", "guide_triton", "interpreting", "kernel_constants", "unavailable"]

OPTIONS = {"enable_fp_fusion": False}
"""What every kernel is compiled with: contraction to fma would follow the layout; where it is wanted it is written."""


def _param(value: Any, layout: Layout) -> tuple[Any, int]:
    """A parameter as the kernels take it, and its entry of ``PARAMS``."""
    if not isinstance(value, Tensor):
        return float(value), -1
    if not value.dim():
        return value, 0
    return value.contiguous(), 2 if value.numel() == layout.groups != layout.groups // layout.per_sample else 1


def _flat(strides: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(step for tensor in strides for step in tensor)


def guide_triton(
    program: Program,
    inputs: Sequence[Tensor],
    params: Sequence[Any],
    outs: Sequence[Tensor],
    results: Sequence[int],
    *,
    dims: Sequence[int] | None = None,
    strategy: Strategy | None = None,
) -> None:
    """Guide tensors ``[B, ...]`` of any strides on their device; writes ``outs``.

    Args:
        params: numbers, or tensors of shape ``[]``, ``[B]`` or ``[G]`` (G groups) on the same device.
        inputs: K predictions of one dtype, then the extras.
        outs: each one of the inputs or apart from them; ``outs[k]`` receives result ``results[k]``.
        dims: dimensions that sums run over; see :func:`~fastcfg_kernels.layout.group_layout`.
        strategy: force a launch strategy.
    """
    import triton.language as tl

    from . import triton_kernels as kernels

    layout = group_layout((*inputs, *outs), dims)
    acc = accumulator(inputs[0].dtype)
    read = program.width + program.affine
    plan = plan_launch(
        layout.count,
        read,
        max(t.element_size() for t in inputs[:read]),
        groups=layout.groups,
        reduces=program.reduces,
        strategy=strategy,
    )
    values, kinds = zip(*(_param(p, layout) for p in params), strict=True) if params else ((), ())
    constants = {
        **kernel_constants(program),
        "PARAMS": kinds,
        "RESULTS": tuple(results),
        "GROUPS": plan.groups,
        "TILES": plan.chunk,
        "TILE": plan.tile,
        "WIDE": layout.count > 2**31 - plan.chunk * plan.tile,
        "WHOLE": layout.count % (plan.chunk * plan.tile) == 0 and layout.groups % plan.groups == 0,
        "ACC": tl.float64 if acc == torch.float64 else tl.float32,
    }
    pitch = -(-plan.tiles // 16) * 16
    arguments = {
        "predictions": tuple(inputs[:read]),
        "outs": tuple(outs),
        "tail": tuple(inputs[read:]),
        "params": values,
        "strides": _flat(layout.strides[:read]),
        "out_strides": _flat(layout.strides[len(inputs) :]),
        "tail_strides": _flat(layout.strides[read : len(inputs)]),
        "outer": layout.outer,
        "inner": layout.inner,
        "groups": layout.groups,
        "per_sample": layout.per_sample,
        "count": layout.count,
        "tiles": plan.tiles,
        "pitch": pitch,
    }
    device = torch.cuda.device(outs[0].device) if outs[0].device.type == "cuda" else nullcontext()
    with device:
        if plan.strategy == "row":
            _launch(kernels.row_kernel, plan, layout, arguments, constants)
            return
        slots = len(program.centred) + len(program.pairs)
        arguments["workspace"] = torch.empty((layout.groups, max(slots, 1), pitch), dtype=acc, device=outs[0].device)
        if program.reduces:
            _launch(kernels.tile_kernel, plan, layout, arguments, constants)
        _launch(kernels.apply_kernel, plan, layout, arguments, constants)


def _launch(
    kernel: Any, plan: LaunchPlan, layout: Layout, arguments: dict[str, Any], constants: dict[str, Any]
) -> None:
    given = {name: value for name, value in (*arguments.items(), *constants.items()) if name in kernel.arg_names}
    kernel[(plan.programs(layout.groups),)](**given, num_warps=plan.num_warps, **OPTIONS)
