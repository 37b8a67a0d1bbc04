"""The run of sections: what is left out and why, and what a failure leaves."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import run, suite
from benchmarks.environment import Environment
from benchmarks.records import OtherKind, Record, read
from benchmarks.sections import Measured, Plan
from benchmarks.suite import SECTIONS, Section, again, obstacle


def record(kind: str) -> Record:
    rows = [{"what": "a", "shape": [1, 4], "versions": {"torch": "2"}, "ms": 1.5}]
    return Record(kind, kind, Environment.of("cpu"), rows, f"# {kind}\n", {"schema": 1})


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Sections that measure nothing; the plans that they were given."""
    plans: list[Plan] = []

    def good(plan: Plan, progress: Any) -> Measured:
        plans.append(plan)
        progress("a part")
        return Measured(record("good"), ["a table"], ["a note"])

    def bad(plan: Plan, progress: Any) -> Measured:
        raise RuntimeError("fastcfg was [refused]")

    def absent(plan: Plan, progress: Any) -> Measured:
        raise ImportError("nothing is installed")

    made = {
        "good": Section("fine", good, "good", {}),
        "bad": Section("wrong", bad, "bad", {}),
        "absent": Section("no module", absent, "absent", {}),
        "needy": Section("no package", good, "needy", {"no_such_package": "export"}),
        "elsewhere": Section("no device", good, "elsewhere", {}, ("cuda",)),
    }
    for module in (suite, run):
        monkeypatch.setattr(module, "SECTIONS", made)
    return plans


def call(*arguments: str) -> Any:
    return CliRunner().invoke(run.app, list(arguments))


def test_one_failure_costs_no_other_result(sections: list[Plan], tmp_path: Path) -> None:
    found = call("--output", str(tmp_path), "--full", "--rounds", "3")
    assert found.exit_code == 1
    assert sections == [Plan(full=True, rounds=3)]
    for line in ("good (fine)", "bad: RuntimeError: fastcfg was [refused]", "absent: left out: nothing is installed",
                 "needy: left out: needs no_such_package; pip install 'fastcfg-diffusion[export]'",
                 "elsewhere: left out: runs on cuda alone, not on cpu", "a table", "a note", "s in all"):  # fmt: skip
        assert line in found.output
    written = {path.suffix for path in tmp_path.iterdir() if path.stem == "good"}
    assert written == {".json", ".md"}


def test_what_is_left_out_is_no_error(sections: list[Plan], tmp_path: Path) -> None:
    found = call("--output", str(tmp_path), *(f"--section={n}" for n in ("good", "needy", "elsewhere", "absent")))
    assert found.exit_code == 0 and found.output.count("left out") == 3 and "bad" not in found.output
    assert call("--output", str(tmp_path / "none"), "--section", "needy").exit_code == 0
    assert not (tmp_path / "none").exists(), "no report of nothing"


def test_a_result_and_its_files(sections: list[Plan], tmp_path: Path) -> None:
    call("--output", str(tmp_path), "--section", "good")
    data = read(tmp_path / "good.json", ("good",))
    assert data["kind"] == "good" and data["schema"] == 1 and data["seconds"] >= 0
    assert data["environment"]["device"] == "cpu" and data["rows"] == list(record("good").rows)
    assert (tmp_path / "good.md").read_text() == "# good\n"
    with pytest.raises(OtherKind, match="its kind is 'good'"):
        read(tmp_path / "good.json", ("kernels",))
    (tmp_path / "half.json").write_text("{")
    with pytest.raises(ValueError, match=r"half\.json is not a result file"):
        read(tmp_path / "half.json", ("good",))


def test_an_older_result_of_the_same_is_replaced(tmp_path: Path) -> None:
    old = record("good")
    elsewhere = replace(old, environment=replace(old.environment, threads=old.environment.threads + 1), name="there")
    for each in (replace(old, name="once"), elsewhere, replace(old, kind="other", name="other")):
        each.write(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    old.write(tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {"good", "there", "other", "broken"}


def test_a_stopped_run_keeps_what_is_done(
    sections: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(run.SECTIONS, "bad", replace(run.SECTIONS["bad"], measure=stop))  # type: ignore[arg-type]
    found = call("--output", str(tmp_path))
    assert found.exit_code == 130 and "--section bad" in found.output and "--section good" not in found.output
    assert (tmp_path / "good.json").exists() and (tmp_path / "report.html").exists()


def test_recorded_results_are_replaced_by_all_of_a_full_run_alone(
    sections: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path / "recorded")
    for arguments in ((), ("--full", "--rounds", "2"), ("--full", "--rule", "CFG", "--section", "good")):
        call(*arguments)
        assert (tmp_path / "outputs/bench/good.json").exists() and not run.RESULTS.exists()
        shutil.rmtree(tmp_path / "outputs")
    call("--full", "--section", "good")
    assert json.loads((run.RESULTS / "good.json").read_text())["full"] is True


def test_cases_are_measured_again_with_more_rounds(sections: list[Plan]) -> None:
    cases = [("good", "a"), ("good", "b")]
    (outcome,) = again(cases, Plan(), lambda section, part: None)
    assert outcome.section == "good" and sections == [Plan(only=frozenset(cases))]
    assert sections[0].all_sizes and not Plan().all_sizes, "a case of a full run may be among them"
    assert sections[0].rounds_of(20) == 40 and Plan(rounds=3).rounds_of(20) == 3 and Plan().rounds_of(20) == 20


def test_every_section_runs_on_a_cpu() -> None:
    assert list(SECTIONS) == ["kernels", "guided-step", "samplers", "export", "scaling"]
    for name, section in SECTIONS.items():
        # The packages that the tests need hold all that the sections need.
        assert obstacle(section, Plan()) is None, name
    assert obstacle(SECTIONS["export"], Plan(device="cuda")) == "runs on cpu alone, not on cuda"


def test_options_of_the_kernels_are_for_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(suite, "run", lambda names, plan, progress: asked.append((names, plan)) or iter(()))
    for arguments in (["--rule", "CFG"], ["--cold"], [], ["--section", "samplers", "--section", "kernels"]):
        assert call("--output", str(tmp_path), *arguments).exit_code == 0
    assert [names for names, _ in asked] == [["kernels"], ["kernels"], list(SECTIONS), ["kernels", "samplers"]]
    assert asked[0][1].rules == ("CFG",) and asked[1][1].cold


def test_json_is_one_row_a_line() -> None:
    text = record("any").to_json()
    assert json.loads(text)["rows"] == list(record("any").rows) and '\n  {"what": "a"' in text
