"""The fused op on tensors: checks its input, chooses a path, runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from . import library, shadow
from .backends.cpu.backend import guide_contiguous, guide_cpp
from .backends.registry import choose_backend, default_backend, native, requested_backend
from .backends.torch import functional
from .backends.torch.tiles import accumulator
from .backends.triton.launch_plan import Strategy
from .checks import (
    FLOATS,
    check_elementwise,
    check_extras,
    check_out,
    check_param,
    check_tensors,
    elementwise_inputs,
    followed,
    transformed,
)
from .formula.program import Program
from .groups import Groups
from .host import lerp_weight
from .paths import collide, run, run_triton

__all__ = ["Target", "guide", "guide_at_once", "guide_checked", "guide_outputs", "writable"]

Target = tuple[int, torch.dtype | Tensor]
"""A result of a program by number, and the tensor that it is written to or the dtype of a new one."""


def guide(
    predictions: Sequence[Tensor],
    program: Program,
    params: Mapping[str, Any] | None = None,
    *,
    out: Tensor | None = None,
    backend: str | None = None,
    strategy: Strategy | None = None,
    check: bool = False,
) -> Tensor:
    """Guided prediction of K predictions: Gram sums, weights and combine with fp32 accumulation and one rounding.

    Args:
        predictions: K tensors ``[B, ...]`` of one shape, dtype (float32, bfloat16, float16, float64) and device, in
            the order of ``program.predictions``. Sums run over all dimensions but the first.
        program: from :func:`fastcfg_kernels.compile_program`.
        params: a value for each name in ``program.params``: a number, or a 0-dim or ``[B]`` floating tensor.
        out: tensor to write, of the predictions' shape, dtype and device. It may be one of them.
        backend: ``"auto"`` (default), ``"triton"``, ``"cpp"`` (native code) or ``"torch"``.
        strategy: force a Triton launch strategy, ``"row"`` or ``"two_launch"``.
        check: also check that tensor parameters are finite, which waits for the device.

    Returns:
        ``[B, ...]`` in the predictions' dtype; float64 inputs accumulate in float64.

    Raises:
        TypeError, ValueError: naming the argument, for anything that does not fit.
        RuntimeError: if a backend is asked for that can't run there.
    """
    if program.extras or program.results != 1:
        raise ValueError("program: has state; guide it with guide_outputs")
    return guide_outputs(predictions, program, params, out=out, backend=backend, strategy=strategy, check=check)[0]


def guide_outputs(
    predictions: Sequence[Tensor],
    program: Program,
    params: Mapping[str, Any] | None = None,
    *,
    extras: Sequence[Tensor] = (),
    out: Tensor | None = None,
    backend: str | None = None,
    strategy: Strategy | None = None,
    check: bool = False,
) -> list[Tensor]:
    """:func:`guide` for a program with further inputs and outputs.

    Args:
        extras: a tensor for each name in ``program.extras``, of the predictions' shape and device, in their dtype or
            float32 (float64 for float64 predictions).

    Returns:
        The guided prediction, then the other outputs in float32 (float64 for float64).
    """
    names = program.predictions
    if len(predictions) != len(names):
        raise ValueError(f"predictions: expected {len(names)} ({', '.join(names)}), got {len(predictions)}")
    first = predictions[0]
    given = params or {}
    batch = first.shape[0] if first.dim() else 0
    if len(given) != len(program.params) or any(name not in given for name in program.params):
        missing = [n for n in program.params if n not in given]
        extra = [n for n in given if n not in program.params]
        raise ValueError(f"params: missing {missing}, unknown {extra}; the formula takes {list(program.params)}")
    values = [check_param(name, given[name], batch, first.device, check) for name in program.params]
    return guide_checked(predictions, program, values, extras=extras, out=out, backend=backend, strategy=strategy)


def guide_at_once(
    program: Program, predictions: Sequence[Any], values: Sequence[float], out: Tensor | None = None
) -> Tensor | None:
    """The default path of the commonest call on a CPU, whose time is its own overhead; None where it is another call.

    That is: contiguous tensors of one kind, numbers for all parameters, one result (new, or in ``out``, which may be
    one of the predictions), no gradient and no trace.
    """
    if torch.compiler.is_compiling() or transformed() or shadow.on() or program.is_lerp or not native(program):
        return None
    first = predictions[0]
    if type(first) is not Tensor or not first.is_cpu or first.dtype not in FLOATS or first.dim() < 2:
        return None
    if not first.numel() or not (_alike(predictions) if out is None else writable(out, predictions)):
        return None
    try:
        return guide_contiguous(program, predictions, values, out)
    except RuntimeError:  # The long way meets it again, and tells.
        return None


def _alike(tensors: Sequence[Any]) -> bool:
    """Whether values are contiguous tensors of the first one's kind, which need no gradient."""
    first, grad = tensors[0], torch.is_grad_enabled()
    shape, dtype, device = first.shape, first.dtype, first.device
    for tensor in tensors:
        if (
            type(tensor) is not Tensor
            or tensor.shape != shape
            or tensor.dtype is not dtype
            or not tensor.is_contiguous()
            or tensor.device != device
            or tensor.is_neg()
            or (tensor.requires_grad and grad)
        ):
            return False
    return True


def writable(out: Tensor, predictions: Sequence[Any]) -> bool:
    """Whether a result may be written into ``out`` element by element, told in less time than a small call takes.

    It may where all are contiguous and of one kind, no gradient is taken, nothing is traced, and ``out`` is one of the
    predictions or shares no memory with any. Where this is False, :func:`guide` says what is wrong or finds a way.
    """
    if torch.compiler.is_compiling() or transformed() or not _alike((*predictions, out)):
        return False
    size, start = out.nbytes, out.data_ptr()
    return all([(away := abs(p.data_ptr() - start)) == 0 or away >= size for p in predictions])


def guide_checked(
    predictions: Sequence[Tensor],
    program: Program,
    values: Sequence[Any],
    *,
    extras: Sequence[Tensor] = (),
    scale_map: Tensor | None = None,
    mask: Tensor | None = None,
    out: Tensor | None = None,
    targets: Sequence[Target] | None = None,
    dims: Sequence[int] | None = None,
    merge: functional.Merge | None = None,
    backend: str | None = None,
    strategy: Strategy | None = None,
    stats: Tensor | None = None,
) -> list[Tensor]:
    """:func:`guide_outputs` for a caller that has checked the parameters and predictions' number already.

    Args:
        values: parameters in the order of ``program.params``, as :func:`check_param` returns them.
        scale_map: factor of the deltas, for a scaled program: floating, of a shape that broadcasts to the predictions'.
        mask: for a masked program, zero or False where the sums leave an element out; its shape likewise.
        targets: what to write, and where; default ``out``, and new tensors for the other results.
        dims: dimensions that sums run over, not the batch's; None is all the others, and none at all is the whole
            tensor, batch and all.
        merge: where the tensors are a part of the samples that the sums run over, on torch operations then: makes the
            sums of the whole samples of theirs.
        stats: for a program with stats, what they are written to: contiguous ``[G, K]`` (G in several dimensions if
            you like) on the predictions' device, in float32 (float64 for float64), G being the number of groups that
            sums run over and K that of stats. A call without elements writes none.

    Returns:
        A tensor for each target.
    """
    first = predictions[0]
    check_tensors(program.predictions, predictions)
    if extras or program.extras:
        check_extras(program, first, extras)
    if out is not None:
        check_tensors((program.predictions[0], "out"), (first, out))
    if stats is not None or program.stats:
        _check_stats(program, stats, first, dims)
    acc = accumulator(first.dtype)
    inputs = [*predictions, *extras]
    elementwise = check_elementwise(program, first, scale_map, mask)
    if targets is None:
        targets = [(0, first.dtype if out is None else out), *((k, acc) for k in range(1, program.results))]
    for _, target in targets:
        if isinstance(target, Tensor):
            check_out(target, first)
    if first.numel() == 0:
        return [torch.empty_like(first, dtype=t) if isinstance(t, torch.dtype) else t for _, t in targets]
    if (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and merge is None
        and stats is None
        and library.wanted(program.is_lerp, first.device.type, backend)
    ):
        dtypes = [t if isinstance(t, torch.dtype) else t.dtype for _, t in targets]
        every = [*inputs, *elementwise]
        numbers, forced = [k for k, _ in targets], backend == "triton"
        found = library.guide_in_graph(program, every, values, dtypes, numbers, dims, strategy, forced)
        return [t.copy_(r) if isinstance(t, Tensor) else r for r, (_, t) in zip(found, targets, strict=True)]
    if shadow.on() and backend != "torch" and merge is None and not torch.compiler.is_compiling():
        again: dict[str, Any] = {"extras": extras, "scale_map": scale_map, "mask": mask, "dims": dims}
        return _shadowed(predictions, program, values, targets, backend, strategy, stats, again)
    if dims is not None:
        return _guide_groups(
            program, inputs, elementwise, values, targets, Groups(first.shape, dims), backend, strategy, stats
        )
    as_torch = followed([*inputs, *elementwise], values)
    if merge is not None or torch.compiler.is_compiling() or as_torch:
        rows = [t.flatten(1) for t in (*inputs, *elementwise)]
        shaped = [r.view(first.shape) for r in functional.guide_rows(program, rows, values, merge, stats)]
        return [shaped[k].to(t) if isinstance(t, torch.dtype) else t.copy_(shaped[k]) for k, t in targets]

    path = choose_backend(program, first.device, backend)
    if path == "lerp":
        [(_, goal)] = targets
        if (goal if isinstance(goal, torch.dtype) else goal.dtype) is first.dtype:
            into = goal if isinstance(goal, Tensor) else None
            if (done := _lerp(program, predictions, values, into)) is not None:
                return [done]
        path = default_backend(program, first.device) if requested_backend(backend) == "auto" else "torch"
    results = [k for k, _ in targets]
    made = [torch.empty_like(first, dtype=t) if isinstance(t, torch.dtype) else t for _, t in targets]
    new = all([isinstance(t, torch.dtype) for _, t in targets])
    dense = all([t.is_contiguous() and not t.is_neg() for t in (*inputs, *made)])
    if path == "cpp" and new and not elementwise and dense:
        # The shortest way, for calls whose time is their own overhead. A failure is met again below, and told.
        with suppress(RuntimeError):
            guide_cpp(program, inputs, values, made, results, stats)
            return made
    forced = backend in ("triton", "cpp")
    run(path, program, inputs, elementwise, values, made, results, strategy, forced=forced, stats=stats)
    return made


def _check_stats(program: Program, stats: Tensor | None, first: Tensor, dims: Sequence[int] | None) -> None:
    """Raise unless there is memory for a program's stats, and for nothing else."""
    count, dtype = len(program.stats), accumulator(first.dtype)
    if stats is None or not count:
        raise ValueError(f"stats_out: expected {'a tensor' if count else 'none'}, since there are {count} stats")
    groups = first.shape[0] if dims is None else Groups(first.shape, dims).number
    fits = stats.shape[-1:] == (count,) and stats.numel() == groups * count and stats.is_contiguous()
    if not fits or stats.dtype != dtype or stats.device != first.device or stats.requires_grad:
        raise ValueError(
            f"stats_out: expected a contiguous [{groups}, {count}] of {dtype} on {first.device}, without a gradient, "
            f"got {list(stats.shape)} of {stats.dtype} on {stats.device}"
        )


def _shadowed(
    predictions: Sequence[Tensor],
    program: Program,
    values: Sequence[Any],
    targets: Sequence[Target],
    backend: str | None,
    strategy: Strategy | None,
    stats: Tensor | None,
    options: Mapping[str, Any],
) -> list[Tensor]:
    """The call as it is, compared with the torch path."""
    options = {**options, "stats": stats}
    new = [(k, t.dtype if isinstance(t, Tensor) else t) for k, t in targets]
    with shadow.paused():
        expected = guide_checked(predictions, program, values, targets=new, backend="torch", **options)
        largest = shadow.span([*predictions, *options["extras"], *expected])
        found = guide_checked(
            predictions, program, values, targets=targets, backend=backend, strategy=strategy, **options
        )
    shadow.compare(found, expected, largest)
    return found


def _guide_groups(
    program: Program,
    inputs: Sequence[Tensor],
    elementwise: Sequence[Tensor],
    values: Sequence[Any],
    targets: Sequence[Target],
    groups: Groups,
    backend: str | None,
    strategy: Strategy | None,
    stats: Tensor | None,
) -> list[Tensor]:
    """Guide with sums over other dimensions: the Triton kernels read groups where they lie, others get them as rows."""
    first, size = inputs[0], len(program.predictions)
    if groups.whole:
        values = [groups.values(v) for v in values]
    traced = torch.compiler.is_compiling()
    as_torch = followed([*inputs, *elementwise], values)
    if not traced and not as_torch and choose_backend(program, first.device, backend) == "triton":
        results = [k for k, _ in targets]
        made = [torch.empty_like(first, dtype=t) if isinstance(t, torch.dtype) else t for _, t in targets]
        every = [*inputs, *elementwise]
        if run_triton(program, every, values, made, results, strategy, backend == "triton", groups.dims, stats):
            return made
    rows = [groups.rows(t) for t in (*inputs, *elementwise)]
    views = iter(rows[len(inputs) :])
    scale_map, mask = (next(views) if there else None for _, there in elementwise_inputs(program))
    found = guide_checked(
        rows[:size],
        program,
        [groups.values(v) for v in values],
        extras=rows[size : len(inputs)],
        targets=[(k, t.dtype if isinstance(t, Tensor) else t) for k, t in targets],
        scale_map=scale_map,
        mask=mask,
        backend=backend,
        stats=stats,
    )
    back = [groups.back(result) for result in found]
    return [t.copy_(r) if isinstance(t, Tensor) else r for r, (_, t) in zip(back, targets, strict=True)]


def _lerp(program: Program, predictions: Sequence[Tensor], values: Sequence[Any], out: Tensor | None) -> Tensor | None:
    """The one-kernel form, or None where the formula's base weight is not 1 or a scale varies by sample."""
    if any(isinstance(v, Tensor) and (v.device.type != "cpu" or v.dim()) for v in values):
        return None
    weight = lerp_weight(program, [v.item() if isinstance(v, Tensor) else v for v in values])
    if weight is None:
        return None
    base, other = predictions
    if out is None or any(collide(out, p) for p in predictions):
        made = torch.lerp(base, other, weight)
        return made if out is None else out.copy_(made)
    return torch.lerp(base, other, weight, out=out)
