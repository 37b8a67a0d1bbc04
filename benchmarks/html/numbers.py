"""Numbers as text, the same everywhere: no more digits than were measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

__all__ = ["SPACE", "between", "count", "decimal", "listed", "milliseconds", "percent", "plural", "tick", "times"]


SPACE = "\N{NO-BREAK SPACE}"


def decimal(value: float | None, digits: int = 3) -> str:
    """Significant digits, without an exponent where a reader can do without; – for what was not measured."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and not 1e-3 <= size < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    places = max(0, digits - 1 - (math.floor(math.log10(size)) if size else 0))
    return f"{value:,.{min(places, 6)}f}".replace(",", SPACE)


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def tick(value: float) -> str:
    """A round number on an axis, as short as can be: ``0.5``, ``2 000``, ``10⁵``."""
    if value and not 1e-3 <= abs(value) < 1e4:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}×10".removeprefix("1×") + str(int(exponent)).translate(_SUPERSCRIPT)
    return f"{value:,.10g}".replace(",", SPACE)


def milliseconds(value: float | None) -> str:
    """A time given in milliseconds, in the unit that suits it."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) < 1:
        return f"{decimal(value * 1e3)}{SPACE}µs"
    return f"{decimal(value)}{SPACE}ms" if abs(value) < 999.5 else f"{decimal(value / 1e3)}{SPACE}s"


def times(value: float | None) -> str:
    """A ratio: ``0.84×``, ``29.8×``."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.2f}×" if abs(value) < 9.995 else f"{value:.1f}×" if abs(value) < 99.95 else f"{value:.0f}×"


def percent(value: float | None, places: int = 0) -> str:
    """A share of 1."""
    return f"{value * 100:.{places}f}{SPACE}%" if value is not None and math.isfinite(value) else "–"


def count(value: float | None) -> str:
    """A whole number, with spaces between thousands."""
    return f"{round(value):,}".replace(",", SPACE) if value is not None and math.isfinite(value) else "–"


def between(values: Iterable[float], show: Callable[[float], str]) -> str:
    """From the least to the greatest; one of them where both read alike."""
    found = list(values)
    low, high = show(min(found)), show(max(found))
    return low if low == high else f"{low} to {high}"


def plural(number: int, what: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{number} {what}{'s' * (number != 1)}"


def listed(names: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
