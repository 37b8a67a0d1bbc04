"""Launches the Triton kernels on ``[B, N]`` rows."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .generated import function_from_source
from .launch_plan import Strategy, plan_launch
from .program import Program
from .tiles import accumulator

__all__ = ["guide_triton", "interpreting", "kernel_constants", "unavailable"]


@cache
def _import_error() -> str | None:
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton is not installed ({error}); pip install 'fastcfg[gpu]'"
    return None


def interpreting() -> bool:
    """Whether Triton runs in its interpreter (``TRITON_INTERPRET=1``), which needs no GPU."""
    if _import_error():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def unavailable(device: torch.device) -> str | None:
    """Why Triton can't run on a device, or None where it can."""
    if error := _import_error():
        return error
    if device.type == "cuda":
        return None
    if device.type == "cpu" and interpreting():
        return None
    if device.type == "cpu":
        return "Triton runs on a CPU in its interpreter only (TRITON_INTERPRET=1 before the first import)"
    return f"device type {device.type!r} has not been tried with these kernels"


@cache
def _jit(fn: Callable[..., Any]) -> Any:
    """A plain function of scalars as a Triton function.

    Triton's compiler reads annotations as code, and no global names but functions of its own and constants: the
    function gets a copy without annotations, in a scope where the functions it calls went the same way.
    """
    import triton
    import triton.language as tl

    tree = ast.parse(textwrap.dedent(inspect.getsource(fn)))
    definition = next((node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)), None)
    if definition is None:
        raise ValueError(f"formula {fn.__name__}: expected a function made by def, whose text Triton can read")
    definition.decorator_list = []
    definition.returns = None
    arguments = definition.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        argument.annotation = None
    arguments.defaults = []  # Every argument is given.
    found = inspect.getclosurevars(fn)
    scope: dict[str, Any] = {"__name__": fn.__module__ or __name__}
    for name, value in {**found.globals, **found.nonlocals}.items():
        if isinstance(value, int | float):
            value = tl.constexpr(value)
        elif inspect.isfunction(value) and not hasattr(value, "__triton_builtin__"):
            value = _jit(value)
        scope[name] = value
    text = ast.unparse(ast.fix_missing_locations(definition)) + "\n"
    return triton.jit(function_from_source(definition.name, text, scope))


@cache
def kernel_constants(program: Program) -> dict[str, Any]:
    """The compile-time arguments of a program's kernels."""
    import triton

    centred = program.centred
    pairs = tuple(
        (True, centred.index(a), centred.index(b)) if kind == "cov" else (False, a, b) for kind, a, b in program.pairs
    )
    return {
        # The interpreter runs plain Python; only the compiler wants formulas wrapped.
        "WEIGH": program.weigh if interpreting() else triton.jit(program.function(_jit)),
        "PAIRS": pairs,
        "CENTRED": centred,
        "MEANS": tuple(centred.index(v) for v in program.means),
        "OUTPUTS": program.outputs,
        "ROWS": program.rows,
        "CLAMP": program.clamps,
        "SIZE": len(program.predictions),
        "WIDTH": program.width,
        "AFFINE": program.affine,
    }


def guide_triton(
    program: Program,
    inputs: Sequence[Tensor],
    params: Sequence[Any],
    outs: Sequence[Tensor],
    results: Sequence[int],
    *,
    strategy: Strategy | None = None,
) -> None:
    """Guide ``[B, N]`` rows (last stride 1, any batch stride) on their device; writes ``outs``.

    Args:
        params: numbers, or tensors of shape ``[]`` or ``[B]`` on the same device.
        inputs: K predictions of one dtype, then E extras.
        outs: ``[B, N]``, each one of the inputs or apart from them; ``outs[k]`` receives result ``results[k]``.
        strategy: force a launch strategy.
    """
    import triton.language as tl

    from .triton_kernels import apply_kernel, row_kernel, tile_kernel

    batch, count = outs[0].shape
    acc = accumulator(inputs[0].dtype)
    constants = kernel_constants(program)
    read = program.width + program.affine
    plan = plan_launch(count, read, inputs[0].element_size(), reduces=program.reduces, strategy=strategy)
    values = tuple(p if isinstance(p, Tensor) else float(p) for p in params)
    param_strides = tuple((p.stride(0) if p.dim() else 0) if isinstance(p, Tensor) else -1 for p in values)
    strides = tuple(p.stride(0) for p in inputs[:read])
    tail_strides = tuple(p.stride(0) for p in inputs[read:])
    sums = {key: constants[key] for key in ("PAIRS", "CENTRED", "SIZE", "AFFINE")}
    sums["STRIDES"] = param_strides
    shared = {"TILE": plan.tile, "ACC": tl.float64 if acc == torch.float64 else tl.float32}
    weights = {key: constants[key] for key in ("WEIGH", "MEANS", "OUTPUTS", "ROWS", "CLAMP", "WIDTH")}
    weights["RESULTS"] = tuple(results)
    launch = {"num_warps": plan.num_warps}
    reads, tail, writes = tuple(inputs[:read]), tuple(inputs[read:]), tuple(outs)
    out_strides = tuple(o.stride(0) for o in outs)

    device = torch.cuda.device(outs[0].device) if outs[0].device.type == "cuda" else nullcontext()
    with device:
        if plan.strategy == "row":
            row_kernel[(batch,)](
                reads, writes, tail, values, strides, out_strides, tail_strides, count,
                TILES=plan.tiles, **sums, **weights, **shared, **launch,
            )  # fmt: skip
            return
        grid = (plan.tiles, batch)
        slots = len(program.centred) + len(program.pairs)
        workspace = torch.empty((batch, max(slots, 1), plan.tiles), dtype=acc, device=outs[0].device)
        if program.reduces:
            tile_kernel[grid](reads, values, workspace, strides, count, plan.tiles, **sums, **shared, **launch)
        apply_kernel[grid](
            reads, writes, tail, values, workspace, strides, out_strides, tail_strides, count, plan.tiles,
            **sums, **weights, **shared, **launch,
        )  # fmt: skip
