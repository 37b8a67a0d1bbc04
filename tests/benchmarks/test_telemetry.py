"""The cost of telemetry: every contestant in every case, and the tables of it."""

import json

import pytest

from benchmarks import telemetry
from benchmarks.environment import Environment


def test_rows_and_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "CALLS", 3)
    rows = telemetry.measure(2, shapes=[(1, 2, 4, 4)])
    recorders = telemetry.contestants()
    assert {(r["rule"], r["telemetry"]) for r in rows} == {(rule, who) for rule in telemetry.RULES for who in recorders}
    assert all(r["us"] > 0 and r["ratio_p20"] <= r["ratio"] <= r["ratio_p80"] for r in rows)
    assert {r["ratio"] for r in rows if r["telemetry"] == "off"} == {1.0}
    made = telemetry.record(rows, 1.5, Environment.of("cpu"))
    read = json.loads(made.to_json())
    assert read["kind"] == "telemetry" and read["scrape_ms"] == 1.5 and len(read["rows"]) == len(rows)
    assert made.text.count("\n| CFG") == len(rows)
