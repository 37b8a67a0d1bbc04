"""A formula by value: what it closes over, and the globals it reads, belong to it from its definition on.

A formula runs as Python, as C++ and as a Triton kernel, each of which would read a global at another time. So a formula
is rebuilt once over a scope of its own, which holds the numbers and functions that it named then, and nothing else.
"""

from __future__ import annotations

import ast
import builtins
import dis
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakValueDictionary

from .. import math as formula_math
from ..finite import finite_number
from .generated import function_from_source

__all__ = ["by_value", "captured_numbers", "content_digest", "where_in"]

_POWER = "power_"
"""What ``**`` becomes: a call of :func:`fastcfg_kernels.math.power`, for not every backend has the operator."""

_MODULES = (formula_math, sys.modules[__name__.partition(".")[0]])
"""Modules that a formula may name, for the functions in them."""

REMEDY = f"use + - * / ** and the functions of fastcfg_kernels.math ({', '.join(formula_math.__all__)})"

# Equal formulas with equal numbers are one function, so that they share programs and compiled kernels.
_interned: WeakValueDictionary[tuple[Any, ...], FunctionType] = WeakValueDictionary()


def where_in(fn: Callable[..., Any], line: int | None = None) -> str:
    """Return where a formula stands, for errors: its name, file and line."""
    code: CodeType | None = getattr(getattr(fn, "__written__", fn), "__code__", None)
    name = getattr(fn, "__name__", repr(fn))
    if code is None:
        return f"formula {name}"
    return f"formula {name} ({code.co_filename}, line {line or code.co_firstlineno})"


def by_value(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the formula with everything it names bound to what that is now; the same one each time.

    Numbers (finite; NumPy's too), functions of :mod:`fastcfg_kernels.math`, and plain functions of numbers, which go
    the same way, may be named.

    Raises:
        TypeError: if it is no plain Python function of positional arguments.
        ValueError: naming the formula, the line, what it names that has no value on every backend, and the remedy.
    """
    done: Callable[..., Any] | None = getattr(fn, "__formula__", None)
    if done is not None:
        return done
    if not isinstance(fn, FunctionType):
        raise TypeError(f"formula: expected a plain Python function, got {type(fn).__name__}")
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise ValueError(f"{where_in(fn)}: argument {parameter} can't be given by position; write each one out")
    made = _bound(fn)
    fn.__formula__ = made  # type: ignore[attr-defined]
    made.__formula__ = made  # type: ignore[attr-defined]
    return made


def captured_numbers(fn: Callable[..., Any]) -> dict[str, float]:
    """Return the numbers that a formula of :func:`by_value` names, its helpers' as ``helper.NAME``."""
    return dict(getattr(fn, "__captured__", {}))


def content_digest(fn: Callable[..., Any]) -> str:
    """Return 16 hex digits of a formula's text and its helpers', the same in every process and without its numbers.

    The text is read without names of files, comments, annotations, docstring and default values.
    """
    parts = [_text(fn), *(content_digest(helper) for helper in _helpers(fn))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _helpers(fn: Callable[..., Any]) -> list[Callable[..., Any]]:
    return list(getattr(fn, "__helpers__", ()))


def _text(fn: Callable[..., Any]) -> str:
    definition = _definition(fn)
    if definition is None:
        code = fn.__code__
        return repr((code.co_code, code.co_names, code.co_varnames, [c for c in code.co_consts if c != fn.__doc__]))
    if definition.body and isinstance(first := definition.body[0], ast.Expr) and isinstance(first.value, ast.Constant):
        definition.body = definition.body[1:] or [ast.Pass()]
    return ast.unparse(definition)


def _definition(fn: Callable[..., Any]) -> ast.FunctionDef | None:
    """The formula's ``def`` without decorators, annotations and defaults; None where its text can't be had."""
    source: str | None = getattr(fn, "__source__", None)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(fn) if source is None else source))
    except (OSError, TypeError, SyntaxError):
        return None
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == fn.__name__]
    if not found:
        return None
    definition = found[0]
    definition.decorator_list, definition.returns, definition.args.defaults = [], None, []
    for argument in (*definition.args.posonlyargs, *definition.args.args):
        argument.annotation = None
    return definition


def _bound(fn: FunctionType) -> Callable[..., Any]:
    code = fn.__code__
    scope, numbers, helpers = _scope(fn)
    powers = any(i.opname == "BINARY_POWER" or (i.opname == "BINARY_OP" and "**" in i.argrepr) for i in _steps(code))
    free = tuple(scope[name] for name in code.co_freevars)
    own = (fn.__module__ or "").partition(".")[0] in ("fastcfg", "fastcfg_kernels", "")  # Text has none.
    if own and not (numbers or powers or any(helper is not named for helper, named in helpers)):
        return fn
    key: tuple[Any, ...] = (
        code,
        fn.__name__,
        fn.__defaults__,
        tuple(sorted((n, id(v)) for n, v in scope.items() if n not in numbers)),
    )
    key += (tuple(sorted(numbers.items())), free)
    if (known := _interned.get(key)) is not None:
        return known
    if powers:
        made = _with_power(fn, scope)
    else:
        cells = tuple(_cell(scope[name]) for name in code.co_freevars)
        names = {"__builtins__": builtins, "__name__": fn.__module__ or __name__, **scope}
        made = FunctionType(code, names, fn.__name__, fn.__defaults__, cells)
    made.__doc__, made.__module__, made.__qualname__ = fn.__doc__, fn.__module__, fn.__qualname__
    made.__captured__ = numbers | {  # type: ignore[attr-defined]
        f"{helper.__name__}.{name}": value for helper, _ in helpers for name, value in captured_numbers(helper).items()
    }
    made.__helpers__ = tuple(helper for helper, _ in helpers)  # type: ignore[attr-defined]
    _interned[key] = made
    return made


def _cell(value: Any) -> Any:
    return (lambda: value).__closure__[0]  # type: ignore[index]


def _with_power(fn: FunctionType, scope: Mapping[str, Any]) -> FunctionType:
    """The function with ``a ** b`` written as a call."""
    definition = _definition(fn)
    if definition is None:
        raise ValueError(
            f"{where_in(fn)}: ** needs the formula's text (a def in a file); write products, or power(a, b)"
        )
    definition = ast.fix_missing_locations(_Powers().visit(definition))
    source = ast.unparse(definition) + "\n"
    named = {"__name__": fn.__module__ or __name__, _POWER: formula_math.power, **scope}
    made = function_from_source(fn.__name__, source, named)
    assert isinstance(made, FunctionType)
    made.__defaults__ = fn.__defaults__
    made.__source__ = source  # type: ignore[attr-defined]
    made.__written__ = fn  # type: ignore[attr-defined]
    return made


class _Powers(ast.NodeTransformer):
    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Pow):
            return node
        return ast.Call(ast.Name(_POWER, ast.Load()), [node.left, node.right], [])

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Pow) or not isinstance(node.target, ast.Name):
            return node
        left = ast.Name(node.target.id, ast.Load())
        return ast.Assign([node.target], ast.Call(ast.Name(_POWER, ast.Load()), [left, node.value], []))


def _steps(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _steps(constant)


Helpers = list[tuple[Callable[..., Any], Callable[..., Any]]]


def _scope(fn: FunctionType) -> tuple[dict[str, Any], dict[str, float], Helpers]:
    """Return what a function names: all of it by name, the numbers among it, and helpers with what they were before."""
    scope: dict[str, Any] = {}
    numbers: dict[str, float] = {}
    helpers: Helpers = []
    line = fn.__code__.co_firstlineno
    for name, value, at in _named(fn, line):
        if isinstance(value, bool):
            scope[name] = value
            numbers[name] = float(value)
        elif hasattr(value, "__triton_builtin__") or any(value is module for module in _MODULES):
            scope[name] = value
        elif value is builtins.abs:
            scope[name] = formula_math.abs
        elif isinstance(value, FunctionType):
            helper = fn if value is fn else by_value(value)
            if helper is fn:
                raise ValueError(f"{where_in(fn, at)}: {name} calls itself; a formula is a straight line of operations")
            scope[name] = helper
            helpers.append((helper, value))
        else:
            try:
                scope[name] = numbers[name] = finite_number(name, value)
            except TypeError:
                raise ValueError(f"{where_in(fn, at)}: {_refusal(name, value)}; {REMEDY}") from None
            except ValueError as error:
                raise ValueError(f"{where_in(fn, at)}: {error}") from None
            if type(value) is int:  # Stays one: what is to be repeated may be counted.
                scope[name] = value
    return scope, numbers, helpers


def _named(fn: FunctionType, line: int) -> Iterator[tuple[str, Any, int]]:
    code = fn.__code__
    for name, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents, line
        except ValueError:
            raise ValueError(f"{where_in(fn)}: {name!r} has no value yet; define it before the formula") from None
    for step in _steps(code):
        start = getattr(step, "positions", None)
        line = (start.lineno if start is not None and start.lineno else None) or line
        if step.opname.startswith("IMPORT_"):
            raise ValueError(f"{where_in(fn, line)}: imports {step.argval}; {REMEDY}")
        if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            raise ValueError(f"{where_in(fn, line)}: writes the global {step.argval}; a formula only computes")
        if step.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
            continue
        name = step.argval
        if name in fn.__globals__:
            yield name, fn.__globals__[name], line
        elif hasattr(builtins, name):
            yield name, getattr(builtins, name), line
        else:
            raise ValueError(f"{where_in(fn, line)}: the name {name!r} is not defined; {REMEDY}")


def _refusal(name: str, value: Any) -> str:
    other = {"min": "minimum", "max": "maximum", "pow": "power"}.get(name, name)
    hint = f", for which there is fastcfg_kernels.math.{other}" if other in formula_math.__all__ else ""
    if isinstance(value, ModuleType):
        return f"uses the module {value.__name__!r}, whose functions do not run on every backend"
    if callable(value):
        return f"calls {name!r}, which does not run on every backend{hint}"
    return f"reads {name!r}, a {type(value).__name__}; a formula may name finite numbers and functions of them alone"
