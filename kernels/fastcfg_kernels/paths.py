"""A path on tensors: as rows, or as they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends.cpu.backend import guide_cpp
from .backends.registry import leave
from .backends.torch import functional
from .backends.torch.tiles import accumulator
from .backends.triton import backend as triton_backend
from .backends.triton.launch_plan import Strategy
from .formula.program import Program

__all__ = ["collide", "run", "run_triton"]


def run(
    path: str,
    program: Program,
    inputs: Sequence[Tensor],
    elementwise: Sequence[Tensor],
    values: Sequence[Any],
    targets: Sequence[Tensor],
    results: Sequence[int],
    strategy: Strategy | None,
    forced: bool,
    stats: Tensor | None = None,
) -> None:
    """Run a path on the tensors as rows, and bring to ``targets`` what it could not write there itself."""
    if path == "triton" and run_triton(
        program, [*inputs, *elementwise], values, targets, results, strategy, forced, stats=stats
    ):
        return
    path = "torch" if path == "triton" else path
    inputs, elementwise = _as_stored(inputs), _as_stored(elementwise)
    rows, views = _rows([*inputs, *targets], elementwise)
    sources, destinations = rows[: len(inputs)], rows[len(inputs) :]
    acc = accumulator(inputs[0].dtype)
    for k, (row, target) in enumerate(zip(destinations, targets, strict=True)):
        # A reshape that had to copy leaves the target apart; native code reads an element and then writes it, and
        # knows no conversion between float64 and the others.
        apart = row.data_ptr() != target.data_ptr() or target.is_neg()
        foreign = path == "cpp" and (row.dtype == torch.float64) != (acc == torch.float64)
        if apart or foreign or (path == "cpp" and any(collide(row, s) for s in sources)):
            destinations[k] = torch.empty(row.shape, dtype=acc if foreign else row.dtype, device=row.device)

    try:
        sources += [view.reshape(sources[0].shape).contiguous() for view in views]
        path_of = {"cpp": guide_cpp, "torch": _run_torch}[path]
        path_of(program, sources, values, destinations, results, stats)
    except Exception as error:
        if forced or path == "torch":
            raise
        leave(program, path, error)
        _run_torch(program, sources, values, destinations, results, stats)
    for row, destination, target in zip(rows[len(inputs) :], destinations, targets, strict=True):
        if destination.data_ptr() != target.data_ptr() or target.is_neg():
            # The same order of elements as the rows were read in: the target's memory where it is dense.
            if row.data_ptr() == target.data_ptr():
                row.copy_(destination)
            else:
                target.copy_(destination.view(target.shape))


def run_triton(
    program: Program,
    inputs: Sequence[Tensor],
    values: Sequence[Any],
    targets: Sequence[Tensor],
    results: Sequence[int],
    strategy: Strategy | None,
    forced: bool,
    dims: Sequence[int] | None = None,
    stats: Tensor | None = None,
) -> bool:
    """Run the Triton kernels on the tensors as they lie; whether that worked."""
    inputs = _as_stored(inputs)
    hit = [t.is_neg() or any(collide(t, source) for source in inputs) for t in targets]
    apart = [torch.empty_like(t) if other else t for t, other in zip(targets, hit, strict=True)]
    try:
        triton_backend.guide_triton(program, inputs, values, apart, results, dims=dims, strategy=strategy, stats=stats)
    except Exception as error:
        if forced:
            raise
        leave(program, "triton", error)
        return False
    for target, own in zip(targets, apart, strict=True):
        if own is not target:
            target.copy_(own)
    return True


def _as_stored(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors with their values in memory: torch negates some views (a conjugate's imaginary part) as it reads."""
    return [tensor.resolve_neg() for tensor in tensors]


def _run_torch(
    program: Program,
    sources: Sequence[Tensor],
    values: Sequence[Any],
    outs: Sequence[Tensor],
    results: Sequence[int],
    stats: Tensor | None = None,
) -> None:
    with torch.no_grad():
        made = functional.guide_rows(program, sources, values, stats=stats)
        for out, k in zip(outs, results, strict=True):
            out.copy_(made[k])


def _dense_sample(tensor: Tensor) -> bool:
    """Whether a sample's elements fill one stretch of memory, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride()[1:], tensor.shape[1:], strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _rows(tensors: Sequence[Tensor], elementwise: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors ``[B, ...]`` as ``[B, N]`` with last stride 1, without a copy where the strides allow it.

    Where all share one dense order of memory (``channels_last``, say), that order is taken: sums do not depend on
    which element comes where.

    Args:
        elementwise: of the same shape, with strides of zero perhaps: they come back as views ``[B, ...]`` whose other
            dimensions are in the order of the rows' elements.
    """
    first = tensors[0]
    batch = first.shape[0]
    if all(t.is_contiguous() for t in tensors):
        return [t.view(batch, -1) for t in tensors], list(elementwise)
    strides = first.stride()[1:]
    if all(t.stride()[1:] == strides for t in tensors) and _dense_sample(first):
        count = first[0].numel()
        order = [0, *sorted(range(1, first.dim()), key=lambda d: first.stride()[d], reverse=True)]
        rows = [t.as_strided((batch, count), (t.stride(0), 1)) for t in tensors]
        return rows, [e.permute(order) for e in elementwise]
    # A reshape may be a view with another last stride, where the batch is the innermost dimension.
    rows = [t.reshape(batch, -1) for t in tensors]
    return [r if r.shape[1] == 1 or r.stride(1) == 1 else r.contiguous() for r in rows], list(elementwise)


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors lie in one memory; what NumPy or another library lent may be in several storages."""
    a, b = one.untyped_storage(), other.untyped_storage()
    return a.data_ptr() < b.data_ptr() + b.nbytes() and b.data_ptr() < a.data_ptr() + a.nbytes()


def collide(target: Tensor, source: Tensor) -> bool:
    """Whether writing ``target`` element by element could change what is still to be read of ``source``."""
    if not _share(target, source):
        return False
    same_place = target.data_ptr() == source.data_ptr() and target.stride() == source.stride()
    return not (same_place and target.dtype == source.dtype)
