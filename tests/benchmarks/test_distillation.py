"""The benchmark of students, at a size that takes seconds."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import distillation
from fastcfg.cli import distill as command
from fastcfg.distill import step_time


def test_it_trains_measures_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(distillation.BASE, batch=2, trajectories=1, window=1, sampler_steps=(2,))
    variants = {
        name: replace(variant, config=replace(tiny, mode=variant.config.mode, data=variant.config.data))
        for name, variant in distillation.VARIANTS.items()
    }
    monkeypatch.setattr(distillation, "VARIANTS", variants)
    monkeypatch.setattr(distillation, "TRAJECTORIES", 1)
    monkeypatch.setattr(distillation, "JUDGED", (2.0,))
    monkeypatch.setattr(distillation, "SCALES", (2.0,))
    monkeypatch.setattr(command, "step_time", partial(step_time, count=2, rounds=1))
    arguments = ["--steps", "1", "--samples", "20", "--folder", str(tmp_path / "runs"), "--output", str(tmp_path)]
    result = CliRunner().invoke(distillation.app, arguments)
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "distillation.json").read_text())
    assert data["findings"].keys() == variants.keys() and set(data["steps"].values()) == {1}
    assert data["findings"]["perp-neg"]["time"]["teacher_passes"] == 3
    assert data["kind"] == "distillation" and data["cfg_student_on"].keys() == {"perp-neg", "apg"}
    text = (tmp_path / "distillation.md").read_text()
    assert all(variant.title in text for variant in variants.values()) and "More than plain CFG" in text
    # What was trained and measured is there to be used again.
    (tmp_path / "distillation.md").unlink()
    monkeypatch.setattr(distillation, "measure", None)
    monkeypatch.setattr(distillation, "distill", None)
    assert CliRunner().invoke(distillation.app, arguments).exit_code == 0
    assert (tmp_path / "distillation.md").read_text() == text


def test_unknown_variants_are_refused() -> None:
    result = CliRunner().invoke(distillation.app, ["--variant", "half"])
    assert result.exit_code == 2 and "half" in result.output
