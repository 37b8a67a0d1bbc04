"""Formulas as text: a number that writes down what is done to it."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["Term", "Trace", "literal"]


def literal(value: float) -> str:
    """A number as a C++ constant, to the bit."""
    if math.isnan(value):
        return '__builtin_nan("")'
    if math.isinf(value):
        return "__builtin_inf()" if value > 0 else "-__builtin_inf()"
    return float(value).hex()


class Trace:
    """The statements that computing with :class:`Term` has written, one a line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def bind(self, expression: str, kind: str = "double") -> Term:
        """A new variable that holds ``expression``."""
        name = f"t{len(self.lines)}"
        self.lines.append(f"const {kind} {name} = {expression};")
        return Term(self, name, kind)


class Term:
    """A C++ scalar in a :class:`Trace`. Formulas compute with it as with a number, but can't branch on it."""

    def __init__(self, trace: Trace, name: str, kind: str = "double") -> None:
        self.trace = trace
        self.name = name
        self.kind = kind

    @staticmethod
    def text(value: Any) -> str:
        """The name of a term, or a number as a constant."""
        if isinstance(value, Term):
            return value.name
        if not isinstance(value, int | float):
            raise TypeError(f"formula: expected a number or a value of the formula, got {type(value).__name__}")
        return f"({literal(value)})"

    def call(self, function: str, *args: Any) -> Term:
        """``function(*args)`` as a new term."""
        return self.trace.bind(f"{function}({', '.join(self.text(arg) for arg in args)})")

    def select(self, a: Any, b: Any) -> Term:
        """``a`` where this comparison holds, else ``b``."""
        if self.kind != "bool":
            raise TypeError("formula: where expects a comparison first, such as where(a > 0, b, c)")
        return self.trace.bind(f"{self.name} ? {self.text(a)} : {self.text(b)}")

    def _binary(self, sign: str, a: Any, b: Any, kind: str = "double") -> Term:
        return self.trace.bind(f"{self.text(a)} {sign} {self.text(b)}", kind)

    def __add__(self, other: Any) -> Term:
        return self._binary("+", self, other)

    def __radd__(self, other: Any) -> Term:
        return self._binary("+", other, self)

    def __sub__(self, other: Any) -> Term:
        return self._binary("-", self, other)

    def __rsub__(self, other: Any) -> Term:
        return self._binary("-", other, self)

    def __mul__(self, other: Any) -> Term:
        return self._binary("*", self, other)

    def __rmul__(self, other: Any) -> Term:
        return self._binary("*", other, self)

    def __truediv__(self, other: Any) -> Term:
        return self._binary("/", self, other)

    def __rtruediv__(self, other: Any) -> Term:
        return self._binary("/", other, self)

    def __neg__(self) -> Term:
        return self.trace.bind(f"-{self.name}")

    def __abs__(self) -> Term:
        return self.call("__builtin_fabs", self)

    def __lt__(self, other: Any) -> Term:
        return self._binary("<", self, other, "bool")

    def __le__(self, other: Any) -> Term:
        return self._binary("<=", self, other, "bool")

    def __gt__(self, other: Any) -> Term:
        return self._binary(">", self, other, "bool")

    def __ge__(self, other: Any) -> Term:
        return self._binary(">=", self, other, "bool")

    def __eq__(self, other: object) -> Term:  # type: ignore[override]
        return self._binary("==", self, other, "bool")

    def __ne__(self, other: object) -> Term:  # type: ignore[override]
        return self._binary("!=", self, other, "bool")

    def _logic(self, sign: str, other: Any) -> Term:
        if self.kind != "bool" or not isinstance(other, Term) or other.kind != "bool":
            raise TypeError(f"formula: {sign} is for two comparisons; write each in parentheses")
        return self._binary(sign, self, other, "bool")

    def __and__(self, other: Any) -> Term:
        return self._logic("&", other)

    def __or__(self, other: Any) -> Term:
        return self._logic("|", other)

    def __invert__(self) -> Term:  # Of a plain bool it would be -2 or -1, both of which are true.
        raise TypeError("formula: ~ does not run on every backend; swap the last two arguments of where")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("formula: can't branch on a value; use fastcfg_kernels.math.where")
