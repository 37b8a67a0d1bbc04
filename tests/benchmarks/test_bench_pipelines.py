"""A short run of the pipelines' benchmark."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from benchmarks import bench_pipelines
from benchmarks.bench_pipelines import OURS, STEPS, THEIRS


def test_command(tmp_path: Path) -> None:
    output = tmp_path / "pipelines.json"
    arguments = ["--runs", "1", "--pipeline", "StableDiffusionXL", "--output", str(output)]
    result = CliRunner().invoke(bench_pipelines.app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(output.read_text())["rows"]
    assert {row["dtype"] for row in rows} == {"fp32", "bf16"}
    assert {(row["guidance"], row["provider"]) for row in rows} == {
        ("CFG", OURS), ("CFG", THEIRS), ("CFG + rescale", OURS), ("CFG + rescale", THEIRS), ("APG", OURS)
    }  # fmt: skip
    assert all(row["times"]["p50"] > 0 and row["times"]["rounds"] == STEPS - 1 for row in rows)


def test_what_is_unknown_is_named() -> None:
    result = CliRunner().invoke(bench_pipelines.app, ["--pipeline", "none"])
    assert result.exit_code == 2 and "none" in result.output
