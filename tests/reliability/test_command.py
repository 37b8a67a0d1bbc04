"""``python -m benchmarks.reliability``: its files, its exit code, and a case made again."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.html.results import read_folder
from benchmarks.html.sections import reliability
from benchmarks.reliability import __main__ as command
from benchmarks.reliability.outcome import Failure, Row, Tick, Wrong


def fake(failures: int) -> SimpleNamespace:
    """A run without work."""

    def run(seconds: float, seed: int, tick: Tick) -> Row:
        tick(5)
        found = [Failure("fuzz", "bits: it's another", {"seed": seed, "n": n}) for n in range(failures)]
        return Row("fuzz", 5, seconds, found, {"largest": 0.5, "rules": 3})

    def replay(case: Mapping[str, Any]) -> None:
        if case["n"]:
            raise Wrong(f"bits: {case['n']}")

    return SimpleNamespace(TITLE="It holds", run=run, replay=replay)


def invoke(monkeypatch: pytest.MonkeyPatch, failures: int, *arguments: str) -> Any:
    monkeypatch.setattr(command, "the_run", lambda name: fake(failures))
    return CliRunner().invoke(command.app, ["--run", "fuzz", *arguments])


def test_what_held_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = invoke(monkeypatch, 0, "--minutes", "0.1", "--seed", "7", "--output", str(tmp_path))
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "reliability.json").read_text())
    assert (data["kind"], data["minutes"], data["seed"]) == ("reliability", 0.1, 7)
    assert {"device", "commit", "versions"} <= data["environment"].keys()
    (row,) = data["rows"]
    assert row == {
        "run": "fuzz", "calls": 5, "seconds": 6.0, "failures": 0, "figures": {"largest": 0.5, "rules": 3}
    }  # fmt: skip
    text = (tmp_path / "reliability.md").read_text()
    assert "| fuzz | It holds | 5 | 6 | 0 |" in text and "| fuzz | largest | 0.5 |" in text
    section = reliability.build(read_folder(tmp_path).of("reliability"))
    assert [f.text for f in section.findings] == ["Reliability: 0 failures in 5 calls."]


def test_a_failure_ends_in_an_error_and_says_how_to_see_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = invoke(monkeypatch, 2, "--seed", "7", "--output", str(tmp_path))
    assert done.exit_code == 1
    (row,) = json.loads((tmp_path / "reliability.json").read_text())["rows"]
    assert row["failures"] == 2 and row["found"][1]["case"] == {"seed": 7, "n": 1}
    told = """python -m benchmarks.reliability --run fuzz --case '{"seed": 7, "n": 1}'"""
    assert row["found"][1]["command"] == told and told in done.output


def test_a_case_alone_is_made_again_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = invoke(monkeypatch, 0, "--output", str(tmp_path), "--case", '{"n": 0}')
    assert done.exit_code == 0 and "it holds" in done.output
    done = invoke(monkeypatch, 0, "--output", str(tmp_path), "--case", '{"n": 3}')
    assert done.exit_code == 1 and isinstance(done.exception, Wrong) and str(done.exception) == "bits: 3"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "dance"], "error: run: expected one of fuzz, refusals, threads"),
        (["--run", "fuzz", "--run", "threads", "--case", "{}"], "error: case: goes with one --run"),
        (["--run", "fuzz", "--case", "{"], "error: case: expected JSON"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(command.app, arguments)
    assert done.exit_code == 1 and message in " ".join(done.output.split())
