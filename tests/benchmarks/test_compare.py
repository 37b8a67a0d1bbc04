"""Made-up result files: what counts as worse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import run
from benchmarks.compare import Change, compare, differences, load

CASE = ("CFG", "1×4", "fp32", "time", "hot")


def results(path: Path, schema: int = 2, torch: str = "2.13", **ratios: float) -> Path:
    """A file with one case and a ratio for each peer; each percentile is a tenth off."""

    def row(provider: str, ratio: float) -> dict[str, Any]:
        found = {"rule": "CFG", "provider": provider, "metric": "time", "shape": [1, 4], "dtype": "fp32"}
        found |= {"p20": 0.95 * ratio, "p50": ratio, "p80": 1.05 * ratio, "ratio": ratio}
        return found | ({"ratio_p20": 0.9 * ratio, "ratio_p80": 1.1 * ratio, "cache": "hot"} if schema > 1 else {})

    rows = [row("fastcfg", 1.0), row("fastcfg row", 9.0), *(row(name, ratio) for name, ratio in ratios.items())]
    environment = {"device": "cpu", "hardware": "one", "threads": 2, "commit": path.stem, "versions": {"torch": torch}}
    path.write_text(json.dumps({"schema": schema, "environment": environment, "rows": rows}))
    return path


def call(*arguments: Path | str) -> Any:
    return CliRunner().invoke(run.app, ["--compare", *map(str, arguments)])


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((1.8, 2.0, 2.2), (1.4, 1.6, 1.79), "worse"),
        ((1.8, 2.0, 2.2), (1.4, 1.6, 1.8), "same"),
        ((1.8, 2.0, 2.2), (2.21, 2.5, 2.6), "better"),
        ((1.8, 2.0, 2.2), (2.2, 2.5, 2.6), "same"),
        ((1.8, 2.0, 2.2), (1.0, 2.0, 9.0), "same"),
    ],
)
def test_apart_or_not(old: tuple[float, float, float], new: tuple[float, float, float], verdict: str) -> None:
    assert Change(CASE, "eager", old, new).verdict == verdict


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


def test_what_only_one_has_is_counted(tmp_path: Path) -> None:
    old = load(results(tmp_path / "old.json", eager=2.0, gone=1.0, left=1.0))
    new = load(results(tmp_path / "new.json", eager=2.0, added=1.0))
    found = compare(old, new)
    assert (len(found.changes), found.missing, found.added) == (1, 2, 1)
    assert "2 ratios only in the old file, 1 only in the new" in found.summary()


def test_forced_strategies_are_no_peers(tmp_path: Path) -> None:
    assert {peer for _, peer in load(results(tmp_path / "a.json", eager=2.0)).ratios} == {"eager"}


def test_the_first_schema_bounds_the_ratio_by_its_times(tmp_path: Path) -> None:
    found = load(results(tmp_path / "old.json", schema=1, eager=2.0)).ratios[CASE, "eager"]
    assert found == pytest.approx((1.9 / 1.05, 2.0, 2.1 / 0.95))


def test_other_versions_are_told(tmp_path: Path) -> None:
    old, new = results(tmp_path / "a.json", eager=2.0), results(tmp_path / "b.json", torch="2.14", eager=2.0)
    assert differences(load(old), load(new)) == ["torch: 2.13 then 2.14"], "a commit is expected to differ"
    assert "torch: 2.13 then 2.14" in call(old, new).output


def test_folders_stand_for_this_machines_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = run.Report(run.Environment.of("cpu")).name
    for folder, ratio in (("old", 2.0), ("new", 1.0)):
        (tmp_path / folder).mkdir()
        results(tmp_path / folder / f"{name}.json", eager=ratio)
    assert call(tmp_path / "old", tmp_path / "new").exit_code == 1
    assert call(tmp_path / "old" / f"{name}.json", tmp_path / "old").exit_code == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{"rule": "CFG"}], "environment": {}}', '{"rows": 3}'])
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
