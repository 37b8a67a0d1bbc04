"""Launches the Triton kernels on tensors as they lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .arrivals import arrivals
from .launch_plan import LaunchPlan, Strategy, plan_launch
from .layout import Layout, group_layout
from .program import Program
from .tiles import accumulator
from .triton_formula import interpreting, kernel_constants, unavailable, writable_cache
from .verified import device_key, verified

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


def _bytes(tensor: Tensor) -> Tensor:
    """Truth values as bytes, in the same memory; other tensors as they are."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


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
        inputs: K predictions of one dtype, the extras, then the elementwise scale and mask of a program that has them.
        outs: each one of the inputs or apart from them; ``outs[k]`` receives result ``results[k]``.
        dims: dimensions that sums run over; see :func:`~fastcfg_kernels.layout.group_layout`.
        strategy: force a launch strategy.
    """
    import triton.language as tl

    from . import triton_kernels as kernels

    acc = accumulator(inputs[0].dtype)
    end = len(program.predictions) + len(program.extras)
    # What the sums read, and what a step alone does.
    first = program.width + program.affine
    reads, tail = [*inputs[:first], *(_bytes(t) for t in inputs[end:])], inputs[first:end]
    read = len(reads)
    layout = group_layout((*reads, *tail, *outs), dims)
    plan = plan_launch(
        layout.count,
        read,
        max(t.element_size() for t in reads),
        groups=layout.groups,
        reduces=program.reduces,
        strategy=strategy,
        cooperative=_cooperative_programs(outs[0].device, strategy),
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
        "predictions": tuple(reads),
        "outs": tuple(outs),
        "tail": tuple(tail),
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
        slots = len(program.centred) + len(program.pairs) + program.masked
        arguments["workspace"] = torch.empty((layout.groups, max(slots, 1), pitch), dtype=acc, device=outs[0].device)
        if plan.strategy == "cooperative":
            arguments["arrivals"] = _arrivals(layout.groups, outs[0].device)
            _launch(kernels.cooperative_kernel, plan, layout, arguments, constants, launch_cooperative_grid=True)
            return
        if program.reduces:
            _launch(kernels.tile_kernel, plan, layout, arguments, constants)
        _launch(kernels.apply_kernel, plan, layout, arguments, constants)


def _launch(
    kernel: Any,
    plan: LaunchPlan,
    layout: Layout,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    **options: Any,
) -> None:
    writable_cache()
    given = {name: value for name, value in (*arguments.items(), *constants.items()) if name in kernel.arg_names}
    kernel[(plan.programs(layout.groups),)](**given, num_warps=plan.num_warps, **OPTIONS, **options)


@cache
def _multiprocessors(index: int) -> int:
    count: int = torch.cuda.get_device_properties(index).multi_processor_count
    return count


def _cooperative_programs(device: torch.device, strategy: Strategy | None) -> int:
    """Programs that a device holds at once and that may wait for each other: one on each multiprocessor.

    That is for NVIDIA's GPUs, where it has been verified (``fastcfg info --verify``) or is asked for by name. Others
    run such launches one after the other.
    """
    if device.type != "cuda" or torch.version.hip or strategy not in (None, "cooperative"):
        return 0
    index = torch.cuda.current_device() if device.index is None else device.index
    if strategy is None and "cooperative" not in verified(device_key(index)):
        return 0
    return _multiprocessors(index)


def _arrivals(groups: int, device: torch.device) -> Tensor:
    stream = torch.cuda.current_stream(device).cuda_stream
    return arrivals.take(groups, device, stream, torch.cuda.is_current_stream_capturing())
