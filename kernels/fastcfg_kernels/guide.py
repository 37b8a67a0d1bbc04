"""The fused op on tensors: makes a call of what it is given, and runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import library, shadow
from .backends import registry
from .backends.torch.functional import Merge
from .backends.triton.launch_plan import Strategy
from .call import Call, Target, make_call
from .checks import check_param
from .formula.program import Program

__all__ = ["guide", "guide_checked", "guide_outputs"]


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
    merge: Merge | None = None,
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
    call = make_call(
        program,
        predictions,
        values,
        extras=extras,
        scale_map=scale_map,
        mask=mask,
        out=out,
        targets=targets,
        dims=dims,
        merge=merge,
        strategy=strategy,
        stats=stats,
    )
    if call.first.numel() == 0:
        return call.outputs()
    if torch.compiler.is_compiling():
        if library.wanted_in_graph(call, backend):
            return call.deliver(library.guide_in_graph(call, forced=backend == "triton"))
    elif shadow.on() and backend != "torch" and merge is None:
        return _shadowed(call, backend)
    return registry.run(call, backend)


def _shadowed(call: Call, backend: str | None) -> list[Tensor]:
    """Run the call as it is, and compare it with torch operations."""
    apart = tuple([(k, t.dtype if isinstance(t, Tensor) else t) for k, t in call.targets])
    with shadow.paused():
        expected = registry.BACKENDS["torch"].run(call._replace(targets=apart))
        largest = shadow.span([*call.inputs, *expected])
        found = registry.run(call, backend)
    shadow.compare(found, expected, largest)
    return found
