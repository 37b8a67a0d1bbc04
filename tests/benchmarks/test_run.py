"""The report and a tiny run of the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import kernels, run
from benchmarks.caches import rotations
from benchmarks.cases import RULES, Case, contestants, draw
from benchmarks.counting import Work
from benchmarks.environment import Environment
from benchmarks.race import HostTimer, Summary
from benchmarks.report import Report
from benchmarks.rows import Row, Target
from benchmarks.sections import Plan

CASE = Case(RULES[1], (1, 4, 64, 64), "fp32")
WHERE = Environment("cpu", "a processor", 2, "abc", {"torch": "2"})


def summary(ratio: float) -> Summary:
    return Summary(0.9 * ratio, ratio, 1.1 * ratio, ratio, 0.8 * ratio, 1.2 * ratio, 7)


def report(**ratios: float) -> Report:
    made = Report(WHERE)
    names = {name.replace("_", " "): summary(ratio) for name, ratio in ratios.items()}
    everyone = {"fastcfg": summary(1.0), **names}
    works = {name: Work(3, 2 * CASE.least) for name in names} | {"fastcfg": Work(1, None)}
    made.add(CASE, "time", everyone, dict.fromkeys(everyone, 1.0), works, copy=0.25)
    return made


def test_json_rows_carry_their_whole_key() -> None:
    made = report(eager=0.5)
    made.left_out.append(("a case", "a | peer", "why"))
    data = json.loads(made.record().to_json())
    assert (
        data["kind"] == "kernels"
        and data["schema"] == 2
        and data["cache"] == "hot"
        and data["unit"] == "ms"
        and data["left_out"][0]["reason"] == "why"
    )
    key = {
        "rule",
        "provider",
        "metric",
        "shape",
        "dtype",
        "device",
        "hardware",
        "threads",
        "commit",
        "versions",
        "cache",
    }
    value = {"p20", "p50", "p80", "ratio", "ratio_p20", "ratio_p80", "rounds", "error"}
    value |= {"launches", "moved", "least", "copy", "share"}
    assert len(data["rows"]) == 2 and all(set(row) == key | value for row in data["rows"])
    assert data["rows"][1] | {"provider": "eager", "shape": [1, 4, 64, 64], "p50": 0.5} == data["rows"][1]


def test_share_of_the_copy() -> None:
    _, row = report(eager=0.5).rows
    # Twice the bytes in twice the time of the copy: as many a second.
    assert row.share == pytest.approx(1.0)
    assert replace(row, moved=None).share is None and replace(row, copy=None).share is None


def test_bytes_of_our_kernels() -> None:
    assert CASE.least == 3 * 4 * 64 * 64 * 4
    assert CASE.moved_by_fastcfg("cuda", 1) == CASE.least
    assert CASE.moved_by_fastcfg("cuda", 2) == CASE.moved_by_fastcfg("cpu", 1) == CASE.least // 3 * 5
    assert (no_sums := replace(CASE, contest=RULES[0])).moved_by_fastcfg("cpu", 1) == no_sums.least


def test_rows_that_lose_stay_and_are_told_apart() -> None:
    text = report(eager=0.5, fast=0.25, slow=3.0).to_markdown()
    assert all(f"| {ratio} |" in text for ratio in ("0.50", "0.25", "3.00"))
    lost = text.split("## ")[-2]
    assert lost.startswith("Where fastcfg is slower") and lost.index("| fast |") < lost.index("| eager |")
    assert "slow |" not in lost and "1 / 3" in lost
    assert "Nowhere" in report(slow=3.0).to_markdown()
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
    row = Row("CFG", "torch.lerp", "time", (1, 16, 128, 128), "bf16", 1, 1, 1, 0.84, 0.8, 0.9, 5, 1.0)
    guider = replace(row, rule="CFG + rescale 0.7", provider="diffusers ClassifierFreeGuidance", ratio=4.9)
    made = Report(WHERE, [row, guider])
    made.rows += [replace(r, provider="fastcfg", ratio=1.0) for r in (row, guider)]
    assert [(t.least, t.met) for t in made.targets()] == [(1 / 1.2, True), (5.0, False)]
    host = Report(WHERE, [replace(r, metric="host") for r in made.rows])
    assert not host.targets()
    assert Target("", row, 0.84).met


def test_file_names() -> None:
    assert WHERE.name == "cpu-2threads" and replace(WHERE, threads=1).name == "cpu-1thread"
    assert replace(WHERE, device="cuda", hardware="NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3"
    assert Report(WHERE).name == "kernels-cpu-2threads"
    assert Report(WHERE, cache="cold").name == "kernels-cpu-2threads-cold"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """One small case without the compiled contestants, which take seconds."""

    def quick(case: Case, *, strategies: bool):
        found = contestants(case, strategies=strategies)
        return {name: bind for name, bind in found.items() if "compile" not in name}

    monkeypatch.setattr(kernels, "contestants", quick)
    chosen = [Case(RULES[1], (1, 4, 8, 8), "fp32")]
    monkeypatch.setattr(kernels, "cases", lambda device, full: iter(chosen))
    return chosen


def test_tiny_run(tiny: list[Case], tmp_path: Path) -> None:
    result = CliRunner().invoke(
        run.app, ["--section", "kernels", "--output", str(tmp_path), "--rounds", "2", "--threads", "1"]
    )
    assert result.exit_code == 0, result.output
    data = json.loads((tmp_path / "kernels-cpu-1thread.json").read_text())
    assert {row["provider"] for row in data["rows"]} >= {"fastcfg", "eager"} and not data["left_out"]
    assert all(row["p20"] <= row["p50"] <= row["p80"] and row["rounds"] == 2 for row in data["rows"])
    assert "CFG + rescale 0.7" in (tmp_path / "kernels-cpu-1thread.md").read_text()
    own, *others = data["rows"]
    assert own["launches"] == 1 and own["moved"] == 5 * 4 * 8 * 8 * 4 and own["share"] > 0
    assert all(row["launches"] > 5 and row["moved"] > own["moved"] for row in others)
    written = {"kernels-cpu-1thread.json", "kernels-cpu-1thread.md", "report.html"}
    assert {p.name for p in tmp_path.iterdir()} == written
    assert data["seconds"] > 0 and "kernels (guidance alone, every rule)" in result.output


def test_cold_run_uses_every_copy(tiny: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2 * tiny[0].least // 3
    monkeypatch.setattr(kernels, "last_level_cache", lambda device: 3 * size)
    seen: set[int] = set()

    def watched(case: Case, *, strategies: bool):
        def bind(predictions):
            call = contestants(case, strategies=False)["eager"](predictions)
            return lambda: (seen.add(predictions["cond"].data_ptr()), call())[1]

        return {"fastcfg": bind}

    monkeypatch.setattr(kernels, "contestants", watched)
    made = kernels.measure(tiny, Plan(rounds=8, cold=True), HostTimer())
    assert made.cache == "cold" and len(seen) == rotations(size, 3 * size) == 4


def test_run_with_strategies_as_on_a_gpu(tiny: list[Case]) -> None:
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    large = replace(tiny[0], shape=(1, 20_000))
    made = kernels.measure([tiny[0], large], Plan(device=device, rounds=1), HostTimer(), strategies=True)
    by_shape = [{r.provider for r in made.rows if r.shape == case.shape} for case in (tiny[0], large)]
    assert {"fastcfg row", "fastcfg two_launch"} <= by_shape[0]
    assert "fastcfg two_launch" in by_shape[1] and "fastcfg row" not in by_shape[1]
    refused = {(case, who): why for case, who, why in made.left_out}
    assert "row" in refused[str(large), "fastcfg row"]
    if device == "cpu":
        assert all("programs" in refused[str(case), "fastcfg cooperative"] for case in (tiny[0], large))
        assert len(refused) == 3


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

    monkeypatch.setattr(kernels, "contestants", wrong("eager"))
    made = kernels.measure(tiny, Plan(rounds=1), HostTimer())
    assert [r.provider for r in made.rows] == ["fastcfg"] and made.left_out[0][1] == "eager"
    monkeypatch.setattr(kernels, "contestants", wrong("fastcfg"))
    result = CliRunner().invoke(run.app, ["--section", "kernels", "--output", str(tmp_path), "--rounds", "1"])
    assert result.exit_code == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "nothing"], "nothing"),
        (["--section", "nothing"], "nothing"),
        (["--device", "tpu"], "tpu"),
        (["--rounds", "0"], "rounds"),
        (["--repeat"], "compare"),
    ],
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
