"""Laws are found again, and a run's rows, laws and files agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks import scaling
from benchmarks.caches import cache_levels, last_level_cache
from benchmarks.fits import fit
from benchmarks.scaling import fits_of, measure, record, regimes_of
from benchmarks.scaling_series import Plan, Point, Warm

UNITS = [1, 2, 4, 8, 16, 32, 64]


@given(fixed=st.floats(1e-4, 10), slope=st.floats(1e-4, 10))
def test_a_linear_law_is_found_again(fixed: float, slope: float) -> None:
    law = fit(UNITS, [fixed + slope * x for x in UNITS])
    # Of columns that are normalised to about one and as different as fixed and slope: 1e5 roundings at the most.
    assert law.fixed_ms == pytest.approx(fixed, rel=1e-9, abs=1e-9 * slope)
    assert law.ms_per_unit == pytest.approx(slope, rel=1e-9, abs=1e-9 * fixed)
    assert law.residual < 1e-9 and law.departure == pytest.approx(1) and law.ms(3) == pytest.approx(fixed + 3 * slope)
    assert 0 < law.exponent < 1, "a fixed cost makes growth slower than proportional"


@pytest.mark.parametrize("exponent", [-1.0, 0.5, 1.0, 2.0])
def test_an_exponent_is_found_again(exponent: float) -> None:
    law = fit(UNITS, [0.3 * x**exponent for x in UNITS])
    assert law.exponent == pytest.approx(exponent) and law.exponent_residual < 1e-12


def test_costs_are_not_negative() -> None:
    steeper = fit(UNITS, [x**1.5 for x in UNITS])
    assert steeper.fixed_ms == 0 and steeper.ms_per_unit > 0 and steeper.residual > 0.1
    falling = fit(UNITS, [5 / x for x in UNITS])
    assert falling.ms_per_unit == 0 and falling.fixed_ms > 0
    # The nearest multiple of one column, by its normal equation.
    assert falling.fixed_ms == pytest.approx(sum(x / 5 for x in UNITS) / sum((x / 5) ** 2 for x in UNITS))


def test_small_points_count_as_much_as_large() -> None:
    exact = [1.0 + 0.1 * x for x in UNITS]
    for place in range(len(UNITS)):
        disturbed = [ms * (1.2 if k == place else 1) for k, ms in enumerate(exact)]
        law = fit(UNITS, disturbed)
        assert law.departs == place and 1 < law.departure < 1.2


@pytest.mark.parametrize("units", [[1, 1], [0, 1], [1], [1, float("nan")], [[1, 2], [3, 4]]])
def test_units_that_make_no_law(units: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"^units: expected"):
        fit(units, [1.0] * len(units))


@pytest.mark.parametrize("ms", [[1.0], [1.0, 0.0], [1.0, float("inf")]])
def test_times_that_make_no_law(ms: list[float]) -> None:
    with pytest.raises(ValueError, match=r"^ms: expected 2 positive times"):
        fit([1, 2], ms)


def test_warm_times_the_second_call() -> None:
    calls: list[str] = []

    class Timer:
        def measure(self, call: Any) -> Any:
            calls.append("timed")
            call()
            return lambda: {"time": 1.0}

    Warm(Timer()).measure(lambda: calls.append("call"))
    assert calls == ["call", "timed", "call"]


def test_caches() -> None:
    levels = cache_levels("cpu")
    assert list(levels.values()) == sorted(levels.values())
    # Both read the same files; where there are none the one is empty and the other a guess.
    assert not levels or max(levels.values()) == last_level_cache("cpu")


TINY = Plan(
    batches=(1, 2),
    sides=(8, 16, 24),
    frames=(1,),
    conditions=(2, 3),
    passes=(1, 2),
    images=1,
    images_of=(1, 2),
    ranks=(1, 2),
    rounds=2,
    step_rounds=1,
)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    def over(ranks: int, rounds: int, images: int) -> dict[str, list[float]]:
        assert (rounds, images) == (1, 1)
        # A millisecond of its own and four a pass of the busiest rank.
        passes = {"CFG, 2 passes": 2, "perp-neg, 3 passes": 3, "3 conditions, 4 passes": 4}
        times = {f"{name} | parallel": [1.0 + 4 * -(-count // ranks)] for name, count in passes.items()}
        return times | {f"{name} | serial": [99.0] for name in passes}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "times_over", over)
        parts: list[str] = []
        found = measure(plan=TINY, progress=parts.append)
    assert len(parts) == len(set(parts)) == 4 + 2 + 2
    return found


def test_rows_say_what_was_timed(result: dict[str, Any]) -> None:
    rows = result["rows"]
    expected = {"batch": 4 * 2 + 2 * 2, "pixels": 4 * 3, "frames": 5, "conditions": 2, "passes": 2 * 2, "ranks": 3 * 2}
    assert {axis: sum(row["axis"] == axis for row in rows) for axis in expected} == expected
    for row in rows:
        assert 0 < row["p20"] <= row["ms"] <= row["p80"] and row["per_unit"] == row["ms"] / row["units"]
        assert row["elements"] == torch.Size(row["shape"]).numel()
        assert row["units"] == row["value"] or row["axis"] == "ranks"
        if row["what"] == "combine":
            predictions = {"CFG": 2, "CFG + rescale 0.7": 2, "PerpNeg": 3, "MultiCondition(3)": 4}
            count = row["value"] + 1 if row["axis"] == "conditions" else predictions[row["rule"].removesuffix(", out=")]
            assert row["bytes"] == 4 * row["elements"] * (count + 1)
            fits = [name for name, size in result["caches"].items() if row["bytes"] <= size]
            assert row["held_by"] == (fits[0] if fits else "memory")
    assert {row["value"] for row in rows if row["axis"] == "pixels"} == {64, 256, 576}
    assert result["left_out"] == []


def test_laws_are_of_the_rows(result: dict[str, Any]) -> None:
    laws = {(law["axis"], law["what"], law["rule"]): law for law in result["fits"]}
    assert len(laws) == 4 + 2 + 4 + 1 + 2 + 1, "one size of frames makes no law"
    ranks = laws["ranks", "step", "all"]
    assert (ranks["fixed_ms"], ranks["ms_per_unit"]) == (pytest.approx(1), pytest.approx(4)) and ranks["points"] == 6
    law = laws["pixels", "combine", "CFG"]
    points = [row for row in result["rows"] if (row["axis"], row["rule"]) == ("pixels", "CFG")]
    departure = next(row for row in points if row["value"] == law["departs"]["value"])
    assert law["elements_per_unit"] == 4
    expected = law["fixed_ms"] + law["ms_per_unit"] * departure["value"]
    assert law["departs"]["ratio"] == pytest.approx(departure["ms"] / expected)
    assert all(regime["points"] >= 3 for regime in result["regimes"])


def test_a_change_of_speed_is_told_by_cache() -> None:
    def row(size: int) -> dict[str, Any]:
        level = "L2" if size <= 2**20 else "memory"
        ms = 0.01 + size / 1e6 / (40 if level == "L2" else 8)  # A gigabyte a second is a megabyte a millisecond.
        shown = {"what": "combine", "axis": "batch", "rule": "CFG", "dtype": "fp32", "held_by": level}
        return {**shown, "bytes": size, "ms": ms, "units": size, "value": size, "elements": size // 4}

    rows = [row(2**k) for k in range(16, 28)]
    assert {r["held_by"]: round(r["gb_per_s"], 6) for r in regimes_of(rows)} == {"L2": 40, "memory": 8}
    assert fits_of(rows)[0]["residual"] > 0.1, "and one law does not fit both"


def test_files(result: dict[str, Any], tmp_path: Path) -> None:
    made = record(result)
    written = made.write(tmp_path)
    assert [path.suffix for path in written] == [".json", ".csv", ".md"] and written[0].name.startswith("scaling-cpu-")
    data = json.loads(written[0].read_text())
    assert data["kind"] == "scaling" and data["rows"] == result["rows"] and data["fleet"] == result["fleet"]
    assert len(written[1].read_text().splitlines()) == 1 + len(result["rows"])
    text = written[2].read_text()
    for wanted in ("## Laws", "## Times", "### Ranks, step, fp32", "## A fleet of GPUs", "| student |"):
        assert wanted in text
    assert "9 (1.00)" in text, "two passes on one rank, by the law of the ranks"


def test_a_gpu_has_its_own_time_and_the_hosts() -> None:
    class Timer:
        def measure(self, call: Any) -> Any:
            return lambda: {"device": 2.0, "host": 5.0}

    point = Point("batch", 4, "combine", "CFG", "bf16", (4, 8), 32, 200, torch.Tensor)
    (row,) = scaling._timed([point], Timer(), 3, {"L2": 100})
    assert (row["ms"], row["host_ms"], row["per_unit"], row["held_by"]) == (2.0, 5.0, 0.5, "memory")


def test_plans() -> None:
    quick, full = (Plan.of("cpu", full=f) for f in (False, True))
    assert not quick.ranks and full.ranks == (1, 2) and quick.dtypes == ("fp32",)
    # Of a GPU's dtypes the fleet takes the first.
    assert Plan.of("cuda", full=False).dtypes == ("bf16",)
    assert (quick.batches[-1], quick.sides[-1] ** 2, quick.frames[-1]) == (64, 256**2, 129)
    assert (quick.conditions, quick.passes) == ((2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4))


def test_bad_arguments_end_in_one_line() -> None:
    for arguments in (["--device", "abacus"], ["--threads", "0"]):
        result = CliRunner().invoke(scaling.app, arguments)
        assert result.exit_code == 2 and arguments[0] in result.output
