"""Launches the Triton kernels on tensors as they lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...formula.program import Program
from ...memory import collide, stored
from .arrivals import arrivals
from .formula import interpreting, unavailable
from .launch import OPTIONS, Prepared, Signature, alignments, prepare
from .launch_plan import Strategy
from .short import note
from .verified import device_key, verified

if TYPE_CHECKING:
    from ...call import Call

__all__ = ["OPTIONS", "guide_triton", "interpreting", "run", "supports", "unavailable"]


def supports(call: Call) -> str | None:
    """Return why a call can't be run here, or None where it can."""
    return unavailable(call.first.device) if call.native else "torch's own operations are needed"


def run(call: Call) -> list[Tensor]:
    """Run a call on the tensors as they lie; a result that would overwrite what is still to be read is made apart."""
    sources = stored(call.tensors)
    made = call.outputs()
    hit = [t.is_neg() or any([collide(t, source) for source in sources]) for t in made]
    apart = [torch.empty_like(t) if other else t for t, other in zip(made, hit, strict=True)]
    dims = None if call.groups is None else call.groups.dims
    launched = guide_triton(
        call.program, sources, call.values, apart, call.results, dims=dims, strategy=call.strategy, stats=call.stats
    )
    if launched is not None and not any(hit):
        note(call, *launched, _arrivals)
    for target, own in zip(made, apart, strict=True):
        if own is not target:
            target.copy_(own)
    return made


def _bytes(tensor: Tensor) -> Tensor:
    """Truth values as bytes, in the same memory; other tensors as they are."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def _values(params: Sequence[Any], first: Tensor) -> tuple[float | Tensor, ...]:
    """Parameters as arguments of a kernel; float64 predictions get tensors, for a Python number becomes a float32."""
    wide = first.dtype == torch.float64
    return tuple(
        [
            p.contiguous()
            if isinstance(p, Tensor)
            else torch.full((), p, dtype=torch.float64, device=first.device)
            if wide
            else float(p)
            for p in params
        ]
    )


def guide_triton(
    program: Program,
    inputs: Sequence[Tensor],
    params: Sequence[Any],
    outs: Sequence[Tensor],
    results: Sequence[int],
    *,
    dims: Sequence[int] | None = None,
    strategy: Strategy | None = None,
    stats: Tensor | None = None,
) -> tuple[Prepared, tuple[int, ...]]:
    """Guide tensors ``[B, ...]`` of any strides on their device; writes ``outs``.

    Args:
        params: numbers, or tensors of shape ``[]``, ``[B]`` or ``[G]`` (G groups) on the same device.
        inputs: K predictions of one dtype, the extras, then the elementwise scale and mask of a program that has them.
        outs: each one of the inputs or apart from them; ``outs[k]`` receives result ``results[k]``.
        dims: dimensions that sums run over; see :func:`~fastcfg_kernels.backends.triton.layout.group_layout`.
        strategy: force a launch strategy.
        stats: contiguous ``[G, F]`` for those of a program that has them.

    Returns:
        What was launched, and the pointers' alignment.
    """
    end = len(program.predictions) + len(program.extras)
    # What the sums read, and what a step alone does.
    first = program.width + program.affine
    reads, tail = (*inputs[:first], *map(_bytes, inputs[end:])), tuple(inputs[first:end])
    writes = tuple(outs)
    device = inputs[0].device
    values = _values(params, inputs[0])
    tensors = (*reads, *tail, *writes)
    signature = Signature(
        inputs[0].shape,
        tuple([t.stride() for t in tensors]),
        tuple([t.dtype for t in tensors]),
        len(reads),
        len(tail),
        tuple([-1 if isinstance(v, float) else v.dim() and v.numel() for v in values]),
        tuple([None if isinstance(v, float) else v.dtype for v in values]),
        tuple(results),
        None if dims is None else tuple(dims),
        strategy,
        _cooperative_programs(device, strategy),
        device,
    )
    prepared = prepare(program, signature)
    given: dict[str, Any] = {"predictions": reads, "outs": writes, "tail": tail, "parameters": values}
    pointers = [*tensors, *(v for v in values if isinstance(v, Tensor))]
    if stats is not None:
        given["stats"] = stats
        pointers.append(stats)
    alignment = alignments(pointers)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if prepared.workspace is not None:
            given["workspace"] = torch.empty(prepared.workspace, dtype=prepared.accumulator, device=device)
        if prepared.plan.strategy == "cooperative":
            given["arrivals"] = _arrivals(prepared.layout.groups, device)
        for launch in prepared.launches:
            launch(given, alignment)
    return prepared, alignment


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
