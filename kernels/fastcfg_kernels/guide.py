"""The fused op on tensors: checks its input, chooses a path, runs it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from . import functional, library, shadow, triton_backend
from .cpp_backend import guide_cpp
from .cpp_build import compiler
from .groups import Groups
from .host import lerp_weight
from .inductor import can_compile, guide_compiled
from .launch_plan import Strategy
from .notices import warn_once
from .program import Program
from .tiles import accumulator

__all__ = ["Backend", "choose_backend", "guide", "guide_checked", "guide_outputs"]

Backend = Literal["auto", "triton", "cpp", "inductor", "torch"]
_BACKENDS = get_args(Backend)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Target = tuple[int, torch.dtype | Tensor]
"""A result of a program by number, and the tensor that it is written to or the dtype of a new one."""

_BROKEN: set[Program] = set()


def _requested(backend: str | None) -> str:
    chosen = backend or os.environ.get("FASTCFG_BACKEND") or "auto"
    if chosen not in _BACKENDS:
        source = "backend" if backend else "environment variable FASTCFG_BACKEND"
        raise ValueError(f"{source}: expected one of {', '.join(_BACKENDS)}, got {chosen!r}")
    return chosen


def choose_backend(program: Program, device: torch.device, requested: str | None = None) -> str:
    """The path that a call takes: ``lerp``, ``cpp``, ``inductor``, ``triton`` or ``torch``.

    Neither the batch nor the size of a sample plays a part.

    Args:
        requested: ``"auto"`` (default), ``"triton"``, ``"cpp"``, ``"inductor"`` or ``"torch"``; the environment
            variable ``FASTCFG_BACKEND`` gives it where the argument doesn't.

    Raises:
        ValueError: for a name that is not a backend.
        RuntimeError: if a backend is asked for that can't run there.
    """
    chosen = _requested(requested)
    if chosen == "triton":
        if reason := triton_backend.unavailable(device):
            raise RuntimeError(f"backend: 'triton' is not available: {reason}")
        return "triton"
    if chosen == "cpp" and (device.type != "cpu" or compiler() is None):
        raise RuntimeError("backend: 'cpp' is native code for CPU tensors; it needs them and a C++ compiler")
    if chosen == "inductor" and (device.type != "cpu" or not can_compile()):
        raise RuntimeError("backend: 'inductor' is for CPU tensors; it needs them and a C++ compiler")
    if chosen in ("cpp", "inductor"):
        return chosen
    if program.is_lerp:
        return "lerp"
    return _general(program, device) if chosen == "auto" else "torch"


def _general(program: Program, device: torch.device) -> str:
    """The default path of what is no ``torch.lerp``."""
    if program in _BROKEN:
        return "torch"
    if device.type == "cpu":
        return "torch" if compiler() is None else "cpp"
    return "triton" if triton_backend.unavailable(device) is None else "torch"


def _check(names: Sequence[str], predictions: Sequence[Tensor]) -> None:
    first = predictions[0]
    if first.dtype not in _DTYPES:
        raise TypeError(f"{names[0]}: expected a float32, bfloat16, float16 or float64 tensor, got {first.dtype}")
    if first.dim() < 2:
        raise ValueError(f"{names[0]}: expected [B, ...] with at least two dimensions, got {list(first.shape)}")
    for name, tensor in zip(names[1:], predictions[1:], strict=True):
        if tensor.shape != first.shape:
            raise ValueError(f"{name}: expected the shape of {names[0]}, {list(first.shape)}, got {list(tensor.shape)}")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{name}: expected the dtype of {names[0]}, {first.dtype}, got {tensor.dtype}")
        if tensor.device != first.device:
            raise ValueError(f"{name}: expected the device of {names[0]}, {first.device}, got {tensor.device}")


def check_param(name: str, value: Any, batch: int, device: torch.device, check: bool = False) -> Any:
    """A parameter as a float, or as a 0-dim or ``[B]`` floating tensor on ``device``.

    Raises:
        TypeError: if it is neither a number nor a floating tensor.
        ValueError: if a number is not finite, or a tensor has another shape or device (or, with ``check=True``,
            is not finite; that reads device memory).
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating tensor, got {value.dtype}")
        if value.dim() > 1 or (value.dim() == 1 and value.shape[0] not in (1, batch)):
            raise ValueError(f"{name}: expected a tensor of shape [] or [{batch}], got {list(value.shape)}")
        if value.device != device:
            if value.dim() or value.device.type != "cpu":
                raise ValueError(f"{name}: expected a tensor on {device}, got one on {value.device}")
            return check_param(name, value.item(), batch, device)
        if check and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name}: expected finite values, got {value.tolist()}")
        return value[0] if value.dim() == 1 and batch != 1 and value.shape[0] == 1 else value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number or a floating tensor, got {type(value).__name__}")
    number = float(value)
    if not abs(number) < math.inf:  # NaN too; unlike math.isfinite it can be traced.
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number


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
        backend: ``"auto"`` (default), ``"triton"``, ``"cpp"`` (native code), ``"inductor"`` or ``"torch"``.
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

    Returns:
        A tensor for each target.
    """
    first = predictions[0]
    _check(program.predictions, predictions)
    if extras or program.extras:
        _check_extras(program, first, extras)
    if out is not None:
        _check((program.predictions[0], "out"), (first, out))
    acc = accumulator(first.dtype)
    inputs = [*predictions, *extras]
    elementwise = _check_elementwise(program, first, scale_map, mask)
    if targets is None:
        targets = [(0, first.dtype if out is None else out), *((k, acc) for k in range(1, program.results))]
    for _, target in targets:
        if isinstance(target, Tensor) and (target.shape != first.shape or target.device != first.device):
            expected = f"{list(first.shape)} on {first.device}"
            raise ValueError(f"out: expected a tensor {expected}, got {list(target.shape)} on {target.device}")
    if first.numel() == 0:
        return [torch.empty_like(first, dtype=t) if isinstance(t, torch.dtype) else t for _, t in targets]
    if (
        torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and merge is None
        and backend in (None, "auto", "triton")
        and library.wanted(program, first.device.type)
    ):
        dtypes = [t if isinstance(t, torch.dtype) else t.dtype for _, t in targets]
        every = [*inputs, *elementwise]
        found = library.guide_in_graph(program, every, values, dtypes, [k for k, _ in targets], dims, strategy)
        return [t.copy_(r) if isinstance(t, Tensor) else r for r, (_, t) in zip(found, targets, strict=True)]
    if shadow.on() and backend != "torch" and merge is None and not torch.compiler.is_compiling():
        again: dict[str, Any] = {"extras": extras, "scale_map": scale_map, "mask": mask, "dims": dims}
        return _shadowed(predictions, program, values, targets, backend, strategy, again)
    if dims is not None:
        return _guide_groups(
            program, inputs, elementwise, values, targets, Groups(first.shape, dims), backend, strategy
        )
    differentiable = torch.is_grad_enabled() and _requires_grad([*inputs, *elementwise], values)
    if merge is not None or torch.compiler.is_compiling() or differentiable:
        rows = [t.flatten(1) for t in (*inputs, *elementwise)]
        shaped = [r.view(first.shape) for r in functional.guide_rows(program, rows, values, merge)]
        return [shaped[k].to(t) if isinstance(t, torch.dtype) else t.copy_(shaped[k]) for k, t in targets]

    path = choose_backend(program, first.device, backend)
    if path == "lerp":
        [(_, goal)] = targets
        if (goal if isinstance(goal, torch.dtype) else goal.dtype) is first.dtype:
            into = goal if isinstance(goal, Tensor) else None
            if (done := _lerp(program, predictions, values, into)) is not None:
                return [done]
        path = _general(program, first.device) if _requested(backend) == "auto" else "torch"
    results = [k for k, _ in targets]
    made = [torch.empty_like(first, dtype=t) if isinstance(t, torch.dtype) else t for _, t in targets]
    new = all([isinstance(t, torch.dtype) for _, t in targets])
    if path == "cpp" and new and not elementwise and all([t.is_contiguous() for t in (*inputs, *made)]):
        # The shortest way, for calls whose time is their own overhead. A failure is met again below, and told.
        with suppress(RuntimeError):
            guide_cpp(program, inputs, values, made, results)
            return made
    forced = backend in ("triton", "cpp", "inductor")
    _run(path, program, inputs, elementwise, values, made, results, strategy, forced=forced)
    return made


def _shadowed(
    predictions: Sequence[Tensor],
    program: Program,
    values: Sequence[Any],
    targets: Sequence[Target],
    backend: str | None,
    strategy: Strategy | None,
    options: Mapping[str, Any],
) -> list[Tensor]:
    """The call as it is, compared with the torch path."""
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
) -> list[Tensor]:
    """Guide with sums over other dimensions: the Triton kernels read groups where they lie, others get them as rows."""
    first, size = inputs[0], len(program.predictions)
    if groups.whole:
        values = [groups.values(v) for v in values]
    traced = torch.compiler.is_compiling()
    differentiable = torch.is_grad_enabled() and _requires_grad([*inputs, *elementwise], values)
    if not traced and not differentiable and choose_backend(program, first.device, backend) == "triton":
        results = [k for k, _ in targets]
        made = [torch.empty_like(first, dtype=t) if isinstance(t, torch.dtype) else t for _, t in targets]
        every = [*inputs, *elementwise]
        if _run_triton(program, every, values, made, results, strategy, backend == "triton", groups.dims):
            return made
    rows = [groups.rows(t) for t in (*inputs, *elementwise)]
    views = iter(rows[len(inputs) :])
    scale_map, mask = (next(views) if there else None for _, there in _elementwise(program))
    found = guide_checked(
        rows[:size],
        program,
        [groups.values(v) for v in values],
        extras=rows[size : len(inputs)],
        targets=[(k, t.dtype if isinstance(t, Tensor) else t) for k, t in targets],
        scale_map=scale_map,
        mask=mask,
        backend=backend,
    )
    back = [groups.back(result) for result in found]
    return [t.copy_(r) if isinstance(t, Tensor) else r for r, (_, t) in zip(back, targets, strict=True)]


def _elementwise(program: Program) -> tuple[tuple[str, bool], tuple[str, bool]]:
    """Names of the elementwise inputs, in their order, and which of them the program has."""
    return ("scale_map", program.scaled), ("mask", program.masked)


def _check_elementwise(program: Program, first: Tensor, scale_map: Tensor | None, mask: Tensor | None) -> list[Tensor]:
    """The program's elementwise inputs as views of the predictions' shape."""
    views = []
    for (name, wanted), given in zip(_elementwise(program), (scale_map, mask), strict=True):
        if (given is not None) != wanted:
            raise ValueError(f"{name}: the program takes {'one' if wanted else 'none'}")
        if given is None:
            continue
        if name == "scale_map" and not given.is_floating_point():
            raise TypeError(f"{name}: expected a floating tensor, got {given.dtype}")
        if given.device != first.device:
            raise ValueError(f"{name}: expected a tensor on {first.device}, got one on {given.device}")
        try:
            wide = given.to(accumulator(first.dtype)) if name == "scale_map" else given
            views.append(wide.expand(first.shape))
        except RuntimeError:
            raise ValueError(
                f"{name}: expected a shape that broadcasts to {list(first.shape)}, got {list(given.shape)}"
            ) from None
    return views


def _check_extras(program: Program, first: Tensor, extras: Sequence[Tensor]) -> None:
    if len(extras) != len(program.extras):
        raise ValueError(f"extras: expected {len(program.extras)} {list(program.extras)}, got {len(extras)}")
    acc = accumulator(first.dtype)
    for name, extra in zip(program.extras, extras, strict=True):
        if extra.shape != first.shape or extra.dtype not in (acc, first.dtype) or extra.device != first.device:
            raise ValueError(
                f"{name}: expected {list(first.shape)} in {acc} or {first.dtype} on {first.device}, "
                f"got {list(extra.shape)} in {extra.dtype} on {extra.device}"
            )


def _requires_grad(inputs: Sequence[Tensor], values: Sequence[Any]) -> bool:
    for tensor in inputs:
        if tensor.requires_grad:
            return True
    return any(isinstance(v, Tensor) and v.requires_grad for v in values)


def _lerp(program: Program, predictions: Sequence[Tensor], values: Sequence[Any], out: Tensor | None) -> Tensor | None:
    """The one-kernel form, or None where the formula's base weight is not 1 or a scale varies by sample."""
    if any(isinstance(v, Tensor) and (v.device.type != "cpu" or v.dim()) for v in values):
        return None
    weight = lerp_weight(program, [v.item() if isinstance(v, Tensor) else v for v in values])
    if weight is None:
        return None
    base, other = predictions
    return torch.lerp(base, other, weight) if out is None else torch.lerp(base, other, weight, out=out)


def _run(
    path: str,
    program: Program,
    inputs: Sequence[Tensor],
    elementwise: Sequence[Tensor],
    values: Sequence[Any],
    targets: Sequence[Tensor],
    results: Sequence[int],
    strategy: Strategy | None,
    forced: bool,
) -> None:
    """Run a path on the tensors as rows, and bring to ``targets`` what it could not write there itself."""
    if path == "triton" and _run_triton(program, [*inputs, *elementwise], values, targets, results, strategy, forced):
        return
    path = "torch" if path == "triton" else path
    rows, views = _rows([*inputs, *targets], elementwise)
    sources, destinations = rows[: len(inputs)], rows[len(inputs) :]
    acc = accumulator(inputs[0].dtype)
    for k, (row, target) in enumerate(zip(destinations, targets, strict=True)):
        # A reshape that had to copy leaves the target apart; native code reads an element and then writes it, and
        # knows no conversion between float64 and the others.
        apart = row.data_ptr() != target.data_ptr()
        foreign = path == "cpp" and (row.dtype == torch.float64) != (acc == torch.float64)
        if apart or foreign or (path in ("cpp", "inductor") and any(_collide(row, s, path) for s in sources)):
            destinations[k] = torch.empty(row.shape, dtype=acc if foreign else row.dtype, device=row.device)

    try:
        sources += [view.reshape(sources[0].shape).contiguous() for view in views]
        run = {"cpp": guide_cpp, "inductor": guide_compiled, "torch": _run_torch}[path]
        run(program, sources, values, destinations, results)
    except Exception as error:
        if forced or path == "torch":
            raise
        _broken(program, path, error)
        _run_torch(program, sources, values, destinations, results)
    for row, destination, target in zip(rows[len(inputs) :], destinations, targets, strict=True):
        if destination.data_ptr() != target.data_ptr():
            # The same order of elements as the rows were read in: the target's memory where it is dense.
            if row.data_ptr() == target.data_ptr():
                row.copy_(destination)
            else:
                target.copy_(destination.view(target.shape))


def _run_triton(
    program: Program,
    inputs: Sequence[Tensor],
    values: Sequence[Any],
    targets: Sequence[Tensor],
    results: Sequence[int],
    strategy: Strategy | None,
    forced: bool,
    dims: Sequence[int] | None = None,
) -> bool:
    """Run the Triton kernels on the tensors as they lie; whether that worked."""
    apart = [torch.empty_like(t) if any(_collide(t, source, "triton") for source in inputs) else t for t in targets]
    try:
        triton_backend.guide_triton(program, inputs, values, apart, results, dims=dims, strategy=strategy)
    except Exception as error:
        if forced:
            raise
        _broken(program, "triton", error)
        return False
    for target, own in zip(targets, apart, strict=True):
        if own is not target:
            target.copy_(own)
    return True


def _crosses(target: Tensor, source: Tensor) -> bool:
    """Whether two tensors share memory otherwise than element by element."""

    def end(tensor: Tensor) -> int:
        last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        return tensor.data_ptr() + (last + 1) * tensor.element_size()

    if target.data_ptr() >= end(source) or source.data_ptr() >= end(target):
        return False
    return _collide(target, source, "triton")


def _broken(program: Program, path: str, error: Exception) -> None:
    """Leave a path for good, and say so once."""
    _BROKEN.add(program)
    reason = f"{type(error).__name__}: {error}"
    warn_once(f"fastcfg: a guidance could not be built or run by {path}, the torch path is used ({reason})")


def _collide(row: Tensor, source: Tensor, path: str) -> bool:
    """Whether writing ``row`` could change what is still to be read of ``source``."""
    if row.untyped_storage().data_ptr() != source.untyped_storage().data_ptr():
        return False
    same = row.data_ptr() == source.data_ptr() and row.stride() == source.stride() and row.dtype == source.dtype
    return path == "inductor" or not same


def _run_torch(
    program: Program, sources: Sequence[Tensor], values: Sequence[Any], outs: Sequence[Tensor], results: Sequence[int]
) -> None:
    with torch.no_grad():
        made = functional.guide_rows(program, sources, values)
        for out, k in zip(outs, results, strict=True):
            out.copy_(made[k])
