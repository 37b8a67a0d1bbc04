"""A rule's formula as a compile-time argument of the kernels, and whether Triton can run."""

from __future__ import annotations

import ast
import inspect
import tempfile
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...formula.generated import function_from_source
from ...formula.program import Program
from ...notices import warn_once

__all__ = ["interpreting", "unavailable", "weigh_constant", "writable_cache"]


OLDEST = (3, 6)
"""The oldest version of Triton that compiles these kernels; torch before 2.10 comes with an older one."""


@cache
def _import_error() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"Triton is not installed ({error}); pip install 'fastcfg-diffusion[gpu]'"
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return f"Triton {triton.__version__} is older than {oldest}; pip install --upgrade 'fastcfg-diffusion[gpu]'"
    return None


@cache
def writable_cache() -> None:
    """Let Triton keep compiled kernels in a temporary folder where its own can't be written, and say so once."""
    import triton

    folder = Path(triton.knobs.cache.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        triton.knobs.cache.dir = tempfile.mkdtemp(prefix="fastcfg-triton-")
        warn_once(
            f"fastcfg: Triton's cache can't be written ({error}); kernels are compiled into {triton.knobs.cache.dir}"
        )


def interpreting() -> bool:
    """Return whether Triton runs in its interpreter (``TRITON_INTERPRET=1``), which needs no GPU."""
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
def weigh_constant(program: Program) -> Any:
    """Return a program's formula as a compile-time argument of the kernels."""
    import triton

    # The interpreter runs plain Python; only the compiler wants formulas wrapped.
    return program.weigh if interpreting() else triton.jit(program.function(_jit))
