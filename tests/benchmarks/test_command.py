"""``fastcfg bench`` hands its arguments to the repository's benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastcfg.cli import benchmarks
from fastcfg.cli.app import app


def test_arguments_and_status_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    # A folder of that name where the user stands is not the repository's.
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "run.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    assert benchmarks.command(["--rule", "nothing"]) == 2
    assert "nothing" in capfd.readouterr().err
    monkeypatch.setattr(benchmarks, "command", lambda arguments: len(arguments))
    assert CliRunner().invoke(app, ["bench", "--quick", "--compare", "a", "b"]).exit_code == 4
    assert CliRunner().invoke(app, ["bench", "--help"]).exit_code == 1, "the benchmarks have their own help"


def test_without_the_repository_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="clone"):
        benchmarks.command([], tmp_path)
    monkeypatch.setattr(benchmarks.command, "__defaults__", (tmp_path,))
    result = CliRunner().invoke(app, ["bench"])
    assert result.exit_code == 1 and "clone of the repository" in result.output
    assert "'.[bench]'" in result.output, "brackets of a message are no markup"
