"""A tiny run of the adapters' benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("diffusers.guiders")

from benchmarks import bench_adapters
from benchmarks.race import HostTimer


@pytest.mark.parametrize("name", [name for name in bench_adapters.GUIDERS if "Frequency" not in name])
def test_both_guiders_are_timed_or_it_is_said_why_not(name: str) -> None:
    rows = bench_adapters.measure_guiders(name, (1, 4, 8, 8), "fp32", HostTimer(), 2)
    assert {row.provider for row in rows} == {"fastcfg", "diffusers"}
    for row in rows:
        if row.provider == "fastcfg" or "Magnitude" not in name:
            assert row.reason is None and row.times is not None and row.times.rounds == 2, row
        else:
            assert row.times is None and row.reason is not None and "RuntimeError" in row.reason


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_adapters, "SHAPES", {"tiny": (1, 4, 8, 8)})
    output = tmp_path / "adapters.json"
    arguments = ["guiders", "--rounds", "2", "--guider", "classifierfreeguidance", "--output", str(output)]
    result = CliRunner().invoke(bench_adapters.app, arguments)
    assert result.exit_code == 0, result.output
    assert "ClassifierFreeGuidance, rescale" in result.output and "ratio" in result.output
    data = json.loads(output.read_text())
    rows = data["rows"]
    assert data["kind"] == "guiders"
    assert {row["dtype"] for row in rows} == {"fp32", "bf16"} and all(row["times"]["p50"] > 0 for row in rows)


@pytest.mark.parametrize(("option", "value"), [("--shape", "none"), ("--guider", "none")])
def test_what_is_unknown_is_named(option: str, value: str) -> None:
    result = CliRunner().invoke(bench_adapters.app, ["guiders", option, value])
    assert result.exit_code == 2 and value in result.output
