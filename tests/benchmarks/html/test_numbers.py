"""Numbers as text."""

from __future__ import annotations

import math

import pytest

from benchmarks.html.numbers import between, count, decimal, listed, milliseconds, percent, plural, tick, times


def spaced(text: str) -> str:
    """With spaces where lines may break."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0.00"), (1, "1.00"), (12.345, "12.3"), (1234.5, "1 234"), (999999.4, "999 999"), (0.00123, "0.00123"),
        (-4.5, "-4.50"), (1e-5, "1.00×10⁻⁵"), (2.5e7, "2.50×10⁷"), (None, "–"), (math.nan, "–"), (math.inf, "–"),
    ],
)  # fmt: skip
def test_decimal(value: float | None, text: str) -> None:
    assert spaced(decimal(value)) == text


@pytest.mark.parametrize(("value", "text"), [(0.0174, "17.4 µs"), (1, "1.00 ms"), (999, "999 ms"), (2227, "2.23 s")])
def test_milliseconds(value: float, text: str) -> None:
    assert spaced(milliseconds(value)) == text


def test_the_others() -> None:
    assert [times(v) for v in (0.839, 9.99, 29.83, 120.0, None)] == ["0.84×", "9.99×", "29.8×", "120×", "–"]
    assert [spaced(t) for t in (percent(0.345), percent(0.345, 1), count(520460.0))] == ["34 %", "34.5 %", "520 460"]
    assert [spaced(tick(v)) for v in (0, 0.5, 2e3, 1e5, 2e-4, 3e4)] == ["0", "0.5", "2 000", "10⁵", "2×10⁻⁴", "3×10⁴"]
    assert [plural(n, "case") for n in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
    assert [between(values, times) for values in ([1.71, 1.712], [2.0, 0.5, 1.0])] == ["1.71×", "0.50× to 2.00×"]
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
