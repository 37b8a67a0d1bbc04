"""The report and a tiny run of the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import run
from benchmarks.cases import RULES, Case, contestants, draw
from benchmarks.race import HostTimer, Summary
from benchmarks.report import Environment, Report, Row, Target, write_atomically

CASE = Case(RULES[1], (1, 4, 64, 64), "fp32")
WHERE = Environment("cpu", "a processor", 2, "abc", {"torch": "2"})


def summary(ratio: float) -> Summary:
    return Summary(0.9 * ratio, ratio, 1.1 * ratio, ratio, 7)


def report(**ratios: float) -> Report:
    made = Report(WHERE)
    names = {name.replace("_", " "): summary(ratio) for name, ratio in ratios.items()}
    made.add(CASE, "time", {"fastcfg": summary(1.0), **names}, dict.fromkeys(["fastcfg", *names], 1.0))
    return made


def test_json_rows_carry_their_whole_key() -> None:
    made = report(eager=0.5)
    made.left_out.append(("a case", "a | peer", "why"))
    data = json.loads(made.to_json())
    assert data["schema"] == 1 and data["unit"] == "ms" and data["left_out"][0]["reason"] == "why"
    key = {"rule", "provider", "metric", "shape", "dtype", "device", "hardware", "threads", "commit", "versions"}
    value = {"p20", "p50", "p80", "ratio", "rounds", "error"}
    assert len(data["rows"]) == 2 and all(set(row) == key | value for row in data["rows"])
    assert data["rows"][1] | {"provider": "eager", "shape": [1, 4, 64, 64], "p50": 0.5} == data["rows"][1]


def test_rows_that_lose_stay() -> None:
    text = report(eager=0.5, fast=0.25, slow=3.0).to_markdown()
    assert all(f"| {ratio} |" in text for ratio in ("0.50", "0.25", "3.00"))
    made = report(eager=0.5)
    made.left_out.append(("a case", "a | peer", "why"))
    assert "a \\| peer" in made.to_markdown() and made.table().row_count == 1


@pytest.mark.parametrize(("ratio", "met"), [(0.99, False), (1.0, True)])
def test_targets(ratio: float, met: bool) -> None:
    made = report(diffusers_ClassifierFreeGuidance=ratio, eager=9.0)
    (target,) = made.targets()
    assert target.met is met and target.least == 1.0
    assert ("**no**" in made.to_markdown()) is not met


def test_targets_of_the_larger_shapes() -> None:
    row = Row("CFG", "torch.lerp", "time", (1, 16, 128, 128), "bf16", 1, 1, 1, 0.84, 5, 1.0)
    guider = replace(row, rule="CFG + rescale 0.7", provider="diffusers ClassifierFreeGuidance", ratio=4.9)
    made = Report(WHERE, [row, guider])
    made.rows += [replace(r, provider="fastcfg", ratio=1.0) for r in (row, guider)]
    assert [(t.least, t.met) for t in made.targets()] == [(1 / 1.2, True), (5.0, False)]
    host = Report(WHERE, [replace(r, metric="host") for r in made.rows])
    assert not host.targets()
    assert Target("", (1,), "fp32", 5.0, 5.0).met


def test_file_names() -> None:
    assert WHERE.name == "cpu-2threads" and replace(WHERE, threads=1).name == "cpu-1thread"
    assert replace(WHERE, device="cuda", hardware="NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3"


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.json"]
    write_atomically(path, "new")
    assert path.read_text() == "new"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """One small case without the compiled contestants, which take seconds."""

    def quick(case: Case, *, strategies: bool):
        found = contestants(case, strategies=strategies)
        return {name: bind for name, bind in found.items() if "compile" not in name}

    monkeypatch.setattr(run, "contestants", quick)
    chosen = [Case(RULES[1], (1, 4, 8, 8), "fp32")]
    monkeypatch.setattr(run, "cases", lambda device, quick, full: iter(chosen))
    return chosen


def test_tiny_run(tiny: list[Case], tmp_path: Path) -> None:
    result = CliRunner().invoke(run.app, ["--quick", "--output", str(tmp_path), "--rounds", "2", "--threads", "1"])
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "cpu-1thread.json").read_text())
    assert {row["provider"] for row in data["rows"]} >= {"fastcfg", "eager"} and not data["left_out"]
    assert all(row["p20"] <= row["p50"] <= row["p80"] and row["rounds"] == 2 for row in data["rows"])
    assert "CFG + rescale 0.7" in (tmp_path / "cpu-1thread.md").read_text()


def test_run_with_strategies_as_on_a_gpu(tiny: list[Case]) -> None:
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    large = replace(tiny[0], shape=(1, 20_000))
    made = run.measure([tiny[0], large], device, HostTimer(), strategies=True, rounds=1)
    by_shape = [{r.provider for r in made.rows if r.shape == case.shape} for case in (tiny[0], large)]
    assert {"fastcfg row", "fastcfg two_launch"} <= by_shape[0]
    assert "fastcfg two_launch" in by_shape[1] and "fastcfg row" not in by_shape[1]
    assert [(who, "row" in why) for _, who, why in made.left_out] == [("fastcfg row", True)]


def test_a_wrong_peer_is_reported_and_a_wrong_fastcfg_ends_the_run(
    tiny: list[Case], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(who: str):
        def some(case: Case, *, strategies: bool):
            found = contestants(case, strategies=False)
            return {name: found[name] for name in ("fastcfg", "eager")} | {
                who: lambda predictions: lambda: predictions["cond"]
            }

        return some

    monkeypatch.setattr(run, "contestants", wrong("eager"))
    made = run.measure(tiny, "cpu", HostTimer(), strategies=False, rounds=1)
    assert [r.provider for r in made.rows] == ["fastcfg"] and made.left_out[0][1] == "eager"
    monkeypatch.setattr(run, "contestants", wrong("fastcfg"))
    result = CliRunner().invoke(run.app, ["--output", str(tmp_path), "--rounds", "1"])
    assert result.exit_code == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rule", "nothing"], "nothing"), (["--device", "tpu"], "tpu"), (["--rounds", "0"], "rounds")],
)
def test_bad_arguments(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(run.app, arguments)
    assert result.exit_code == 2 and message in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu_is_one_line() -> None:
    result = CliRunner().invoke(run.app, ["--device", "cuda"])
    assert result.exit_code == 2 and "no CUDA device" in result.output


def test_draws_repeat() -> None:
    first, again = draw(CASE, "cpu"), draw(CASE, "cpu")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["cond"], first["uncond"])
