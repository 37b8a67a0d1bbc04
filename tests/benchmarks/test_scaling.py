"""Laws are found again, a run's rows and laws agree, and the fleet's arithmetic is that of hand and Erlang."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks import scaling
from benchmarks.scaling import Fleet, app, fit, measure, wait
from benchmarks.sections import Plan

UNITS = [1, 2, 4, 8, 16, 32, 64]


@given(fixed=st.floats(1e-4, 10), slope=st.floats(1e-4, 10))
def test_a_linear_law_is_found_again(fixed: float, slope: float) -> None:
    law = fit(UNITS, [fixed + slope * x for x in UNITS])
    # Of columns that are normalised to about one and as different as fixed and slope: 1e5 roundings at the most.
    assert law["fixed_ms"] == pytest.approx(fixed, rel=1e-9, abs=1e-9 * slope)
    assert law["ms_per_unit"] == pytest.approx(slope, rel=1e-9, abs=1e-9 * fixed)
    assert law["residual"] < 1e-9 and 0 < law["exponent"] < 1, "a fixed cost makes growth slower than proportional"


@pytest.mark.parametrize("exponent", [-1.0, 0.5, 1.0, 2.0])
def test_an_exponent_is_found_again(exponent: float) -> None:
    assert fit(UNITS, [0.3 * x**exponent for x in UNITS])["exponent"] == pytest.approx(exponent)


def test_costs_are_not_negative() -> None:
    steeper = fit(UNITS, [x**1.5 for x in UNITS])
    assert steeper["fixed_ms"] == 0 and steeper["ms_per_unit"] > 0 and steeper["residual"] > 0.1
    falling = fit(UNITS, [5 / x for x in UNITS])
    # The nearest multiple of one column, by its normal equation.
    assert falling["ms_per_unit"] == 0
    assert falling["fixed_ms"] == pytest.approx(sum(x / 5 for x in UNITS) / sum((x / 5) ** 2 for x in UNITS))


@pytest.mark.parametrize("ms", [[1.0], [1.0, 0.0], [1.0, math.inf]])
@pytest.mark.parametrize("units", [[1, 2], [1, 1], [0, 1]])
def test_what_makes_no_law(units: list[int], ms: list[float]) -> None:
    with pytest.raises(ValueError, match="units, ms: expected positive times of at least two sizes"):
        fit(units, ms)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        "batch": (1, 2),
        "pixels": (16, 64),
        "frames": (1, 2),
        "conditions": (2, 3),
        "passes": (1, 2),
        "images": (1, 2),
    }
    monkeypatch.setattr(scaling, "SIZES", sizes)
    monkeypatch.setitem(scaling.SHAPES, "frames", lambda f: (1, 2, f, 4, 4))  # type: ignore[arg-type]


@pytest.mark.usefixtures("small")
def test_a_run_s_rows_laws_and_files_agree(tmp_path: Path) -> None:
    parts: list[str] = []
    record = measure(Plan(rounds=2), parts.append)
    assert parts == [*(f"combine, {axis}, fp32" for axis in scaling.SHAPES), "step, passes", "step, images"]
    laws = {tuple(law[name] for name in scaling.NAMES) for law in record.more["fits"]}
    assert laws == {tuple(row[name] for name in scaling.NAMES) for row in record.rows}
    assert all(row["rounds"] == 2 and 0 < row["p20"] <= row["ms"] <= row["p80"] for row in record.rows)
    record.write(tmp_path)
    (file,) = tmp_path.glob("scaling-*.json")
    data: dict[str, Any] = json.loads(file.read_text())
    assert data["kind"] == "scaling" and len(data["rows"]) == len(record.rows)
    assert file.with_suffix(".md").read_text().count("\n|") == 2 + len(laws)


def test_a_call_by_hand() -> None:
    fleet = Fleet(
        pass_ms=100, steps=10, batch_gain=1.25, combine_ms=1, other_ms=2, fixed_ms=50, transfer_ms=3, imbalance=1.1,
        kept=0.5, student_cost=1.2,
    )  # fmt: skip
    found = fleet.latencies()
    assert [gpus for gpus, _ in found.values()] == [1, 1, 2, 1, 2, 1]
    expected = [2080, 1680, 1210, 1580, 50 + 10 * (0.5 * 113 + 50 + 3), 1270]
    assert [ms for _, ms in found.values()] == pytest.approx(expected)


def test_the_wait_is_erlang_s() -> None:
    assert wait(1, 0.5) == pytest.approx(1.0), "M/M/1: a / (1 - a)"
    assert wait(2, 1.0) == pytest.approx(1 / 3), "M/M/2 at half load"
    assert wait(3, 3.0) == math.inf


def test_command() -> None:
    run = CliRunner().invoke(app, ["fleet", "pass_ms=95", "steps=28", "--demand", "5"])
    assert run.exit_code == 0 and "student" in run.output and "assumed: passes=2" in run.output
    assert "pass_ms=" not in run.output.split("assumed")[1]
    for wrong, message in (
        ("steps=0", "steps"),
        ("speed=3", "expected names of pass_ms"),
        ("steps=x", "invalid literal"),
    ):
        run = CliRunner().invoke(app, ["fleet", wrong])
        assert run.exit_code == 2 and message in run.output
