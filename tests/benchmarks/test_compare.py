"""Made-up results: what counts as worse, and how seldom noise does."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import run, suite
from benchmarks.compare import FORMS, MARGIN, Change, Results, compare, differences, load, results_of
from benchmarks.environment import Environment
from benchmarks.records import Record
from benchmarks.sections import Measured
from benchmarks.suite import Outcome

CASE = ("kernels", "CFG", "1×4", "fp32", "time", "hot")
HERE = Environment.of("cpu")


def results(path: Path, schema: int = 2, environment: Environment = HERE, **ratios: float) -> Path:
    """A file with one case and a ratio for each peer; each percentile is a tenth off."""

    def row(provider: str, ratio: float) -> dict[str, Any]:
        found = {"rule": "CFG", "provider": provider, "metric": "time", "shape": [1, 4], "dtype": "fp32"}
        found |= {"p20": 0.95 * ratio, "p50": ratio, "p80": 1.05 * ratio, "ratio": ratio}
        return found | ({"ratio_p20": 0.9 * ratio, "ratio_p80": 1.1 * ratio, "cache": "hot"} if schema > 1 else {})

    rows = [row("fastcfg", 1.0), row("fastcfg row", 9.0), *(row(name, ratio) for name, ratio in ratios.items())]
    path.write_text(json.dumps({"kind": "kernels", "environment": asdict(environment), "rows": rows}))
    return path


def call(*arguments: Path | str) -> Any:
    return CliRunner().invoke(run.app, ["--compare", *map(str, arguments)])


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((2.0, 2.2, 2.4), (1.4, 1.6, 1.79), "worse"),
        ((2.0, 2.2, 2.4), (1.4, 1.6, 1.81), "same"),
        ((1.8, 1.9, 2.0), (2.23, 2.5, 2.6), "better"),
        ((1.8, 1.9, 2.0), (2.21, 2.5, 2.6), "same"),
        ((1.8, 2.0, 2.2), (1.0, 2.0, 9.0), "same"),
    ],
)
def test_apart_by_the_margin_or_not(
    old: tuple[float, float, float], new: tuple[float, float, float], verdict: str
) -> None:
    assert MARGIN == 0.1 and Change(CASE, "eager", old, new).verdict == verdict


def test_a_slower_fastcfg_is_worse(tmp_path: Path) -> None:
    old = results(tmp_path / "old.json", eager=2.0, lerp=1.0)
    new = results(tmp_path / "new.json", eager=1.0, lerp=0.5)
    found = call(old, new)
    assert found.exit_code == 1 and "1 worse" in found.output and "eager" in found.output
    assert call(new, old).exit_code == 0 and "1 better" in call(new, old).output
    assert call(old, old).exit_code == 0 and "0 worse, 0 better" in call(old, old).output


def test_one_faster_peer_is_not_a_slower_fastcfg(tmp_path: Path) -> None:
    old = results(tmp_path / "old.json", eager=2.0, lerp=1.0, compiled=1.5)
    new = results(tmp_path / "new.json", eager=2.0, lerp=1.0, compiled=0.5)
    found = compare(load(old), load(new))
    assert not found.cases("worse") and [c.peer for c in found.changes if c.verdict == "worse"] == ["compiled"]
    assert found.table().row_count == 1 and call(old, new).exit_code == 0
    newer = results(tmp_path / "newer.json", eager=1.0, lerp=1.0, compiled=0.5)
    assert compare(load(old), load(newer)).cases("worse") == [CASE]


def one_run(
    generator: np.random.Generator, ratio: float, cases: int, rounds: int, *, between: float, within: float
) -> Results:
    """Ratios to three peers in many cases, drawn as a run would: what differs between runs and between rounds."""
    peers = ("a", "b", "c")
    own = between * generator.standard_normal((cases, 1, 1))
    middle = np.log(ratio) + own + between * generator.standard_normal((cases, len(peers), 1))
    drawn = np.exp(middle + within * generator.standard_normal((cases, len(peers), rounds)))
    intervals = np.moveaxis(np.percentile(drawn, [20, 50, 80], axis=-1), 0, -1).tolist()
    found = {
        (("kernels", str(number)), peer): (low, mid, high)
        for number, row in enumerate(intervals)
        for peer, (low, mid, high) in zip(peers, row, strict=True)
    }
    return Results({"kernels": asdict(HERE)}, found)


@pytest.mark.parametrize(
    ("between", "within", "rounds", "loss", "seen"),
    [(0.03, 0.02, 400, 1.25, 850), (0.05, 0.1, 50, 1.5, 800), (0.05, 0.2, 15, 2.0, 950)],
)
def test_noise_is_not_worse_and_a_loss_is(between: float, within: float, rounds: int, loss: float, seen: int) -> None:
    """A thousand cases of runs whose ratios move by a few percent as wholes, which no run's own interval shows."""
    generator = np.random.default_rng(0)
    noise: dict[str, Any] = {"cases": 1000, "rounds": rounds, "between": between, "within": within}
    old, new, second = (one_run(generator, 2.0, **noise) for _ in range(3))
    # A run of the suite has some seventy cases: a false alarm in fewer than one of ten runs.
    assert len(compare(old, new).confirmed(old, second).cases("worse")) <= 1
    slower, again = (one_run(generator, 2.0 / loss, **noise) for _ in range(2))
    assert len(compare(old, slower).confirmed(old, again).cases("worse")) >= seen


def test_what_looked_worse_once_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = results(tmp_path / "old.json", eager=2.0)
    new = results(tmp_path / "new.json", eager=1.0)
    asked: list[Any] = []

    def measured(ratio: float) -> Any:
        def again(cases: Sequence[Any], plan: Any, progress: Any) -> list[Outcome]:
            asked.extend(cases)
            data = json.loads(results(tmp_path / "again.json", eager=ratio).read_text())
            return [Outcome("kernels", 1.0, Measured(Record("kernels", "n", HERE, data["rows"], "")))]

        return again

    monkeypatch.setattr(suite, "again", measured(1.9))
    found = call(old, new, "--repeat")
    assert found.exit_code == 0 and asked == [CASE], found.output
    assert "0 worse" in found.output and "1 looked worse and did not when measured again" in found.output
    assert "worse, not again" in found.output
    monkeypatch.setattr(suite, "again", measured(1.0))
    assert call(old, new, "--repeat").exit_code == 1
    monkeypatch.setattr(suite, "again", lambda *_: [Outcome("kernels", why="gone")])
    assert call(old, new, "--repeat").exit_code == 1, "what can't be measured again is not excused"
    asked.clear()
    assert call(old, old, "--repeat").exit_code == 0 and not asked


def test_another_machines_result_is_not_measured_again_here(tmp_path: Path) -> None:
    there = Environment("cpu", "another", HERE.threads, "abc", {})
    old = results(tmp_path / "old.json", eager=2.0)
    new = results(tmp_path / "new.json", environment=there, eager=1.0)
    found = call(old, new, "--repeat")
    assert found.exit_code == 2 and "another" in found.output


def test_what_only_one_has_is_counted(tmp_path: Path) -> None:
    old = load(results(tmp_path / "old.json", eager=2.0, gone=1.0, left=1.0))
    new = load(results(tmp_path / "new.json", eager=2.0, added=1.0))
    found = compare(old, new)
    assert (len(found.changes), found.missing, found.added) == (1, {"kernels": 2}, {"kernels": 1})
    assert "only in the old result 2 ratios (kernels 2); only in the new result 1 ratio (kernels 1)" in found.summary()


def test_forced_strategies_are_no_peers(tmp_path: Path) -> None:
    assert {peer for _, peer in load(results(tmp_path / "a.json", eager=2.0)).ratios} == {"eager"}


def test_the_first_schema_bounds_the_ratio_by_its_times(tmp_path: Path) -> None:
    found = load(results(tmp_path / "old.json", schema=1, eager=2.0)).ratios[CASE, "eager"]
    assert found == pytest.approx((1.9 / 1.05, 2.0, 2.1 / 0.95))


def test_other_versions_are_told(tmp_path: Path) -> None:
    other = Environment(HERE.device, HERE.hardware, HERE.threads, "other", {**HERE.versions, "torch": "9"})
    old, new = results(tmp_path / "a.json", eager=2.0), results(tmp_path / "b.json", environment=other, eager=2.0)
    told = [f"torch: {HERE.versions['torch']} then 9"]
    assert differences(load(old), load(new)) == told, "a commit is expected to differ"
    assert told[0] in call(old, new).output


def test_folders_stand_for_this_machines_files(tmp_path: Path) -> None:
    elsewhere = Environment("cpu", "one", HERE.threads + 1, "abc", {})
    step = {"model": "m", "shape": "1×4", "p20": 1.0, "p80": 1.0}
    for folder, ratio in (("old", 2.0), ("new", 1.0)):
        (tmp_path / folder).mkdir()
        results(tmp_path / folder / "any.json", eager=ratio)
        results(tmp_path / folder / "elsewhere.json", environment=elsewhere, eager=9.0, lerp=9.0)
        rows = [{**step, "contestant": name, "ratio": 1.0} for name in ("batched", "by hand", "no guidance")]
        steps = {"kind": "guided-step", "environment": asdict(HERE), "rows": rows}
        (tmp_path / folder / "steps.json").write_text(json.dumps(steps))
        (tmp_path / folder / "other.json").write_text('{"kind": "quality"}')
    old = load(tmp_path / "old", HERE.name)
    assert set(old.ratios) == {(CASE, "eager"), (("guided-step", "m", "1×4"), "by hand")}
    assert call(tmp_path / "old", tmp_path / "new").exit_code == 1
    assert call(tmp_path / "old" / "any.json", tmp_path / "old").exit_code == 0
    with pytest.raises(ValueError, match=f"no result of nothing with a peer; it has results of {HERE.name}, "):
        load(tmp_path / "old", "nothing")


def test_another_machine_is_told(tmp_path: Path) -> None:
    there = Environment("cpu", "another", HERE.threads, "abc", HERE.versions)
    old = results(tmp_path / "old.json", environment=there, eager=2.0)
    found = call(old, results(tmp_path / "new.json", eager=2.0))
    assert found.exit_code == 0 and f"hardware: another then {HERE.hardware}" in found.output


OTHERS = {"gpu-emulated.json", "hosts.json"}
"""Records of `make gpu-emulated` and `make hosts`, which have forms of their own."""
BENCHED = sorted(path for path in run.RESULTS.glob("*.json") if path.name not in OTHERS)


@pytest.mark.parametrize("path", BENCHED, ids=lambda path: path.stem)
def test_recorded_results_have_a_kind_and_are_read(path: Path) -> None:
    data = json.loads(path.read_text())
    assert data["kind"] and Environment(**data["environment"]).name
    if data["kind"] in FORMS:
        assert all(0 < low <= middle <= high for low, middle, high in results_of(data).ratios.values())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"rows": [{"rule": "CFG"}], "environment": {}}', '{"kind": "kernels", "rows": 3}',
     '{"kind": "quality", "rows": [], "environment": {}}', '{"kind": "kernels", "rows": [{"rule": "CFG"}]}'],
)  # fmt: skip
def test_not_a_result_file(text: str, tmp_path: Path) -> None:
    good, bad = results(tmp_path / "good.json", eager=2.0), tmp_path / "bad.json"
    bad.write_text(text)
    found = call(good, bad)
    # The box around an error breaks a long path.
    assert found.exit_code == 2 and "bad.json" in re.sub(r"[│\s]", "", found.output)
    assert call(good, tmp_path / "none.json").exit_code == 2


def test_nothing_in_common(tmp_path: Path) -> None:
    old, new = results(tmp_path / "a.json", eager=2.0), results(tmp_path / "b.json", lerp=2.0)
    found = call(old, new)
    assert found.exit_code == 2 and "in common" in found.output
