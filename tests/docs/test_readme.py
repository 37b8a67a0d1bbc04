"""README.md says what the code and the recorded results say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import matrix, readme
from fastcfg import APGMix, CFGZeroStar, GatedCFG
from fastcfg.cli.catalog import entries


def test_generated_parts_are_current() -> None:
    for document, text in readme.documents().items():
        assert document.read_text() == text, f"{document.name}: python -m benchmarks.readme --write"


def test_length() -> None:
    lines = (readme.ROOT / "README.md").read_text().splitlines()
    assert 60 <= len(lines) <= 120
    assert [line.split("  ")[0] for line in lines if line.startswith("make ")] == ["make demo", "make test"]


def test_matrix_has_every_rule_and_a_reason_for_every_dash() -> None:
    rows = {line.rule: line for line in matrix.lines()}
    assert rows.keys() == {entry.name for entry in entries()}
    for line in rows.values():
        assert {*matrix.COLUMNS} == (line.taken & {*matrix.COLUMNS}) | line.refused.keys()
        assert not line.taken & line.refused.keys()
    for name in rows:
        assert f"`{name}`" in matrix.compact() and f"| `{name}` |" in matrix.full()


def test_probes_can_refuse() -> None:
    """A rule that something does not take is said not to be taken, and why."""
    rows = {line.rule: line for line in matrix.lines()}
    assert "scale" in rows["MultiCondition"].refused["vllm-omni"]
    assert rows["FDG"].taken.isdisjoint({"cpp", "triton"})
    assert "gradient" in rows["ClassifierGuidance"].refused["ComfyUI"]


def test_nodes_and_guiders_by_name() -> None:
    rows = {line.rule: line for line in matrix.lines()}
    assert rows["APG"].guiders == ("FusedAdaptiveProjectedGuidance",) and rows["APG"].nodes == ("FastcfgAPG",)
    assert rows["Autoguidance"].nodes == ("FastcfgAutoguidanceGuider",) and rows["InstructPix2Pix"].guiders == ()


@pytest.mark.parametrize("rule", [CFGZeroStar(zero_init_steps=0), CFGZeroStar().at(3, 10), APGMix().at(8, 10)], ids=str)
def test_what_the_page_says_of_graphs(rule: Any) -> None:
    assert matrix.why_not(rule, "ONNX") is None
    assert matrix.why_not(GatedCFG(), "ONNX") is not None


def recorded(*rows: tuple[str, str, str, float]) -> dict[str, Any]:
    """Results: fastcfg's, and (rule, provider, dtype, ratio) at every size."""
    own = [(rule, "fastcfg", dtype, 1.0) for rule in readme.OWN for dtype in readme.DTYPES]
    names = ("rule", "provider", "dtype", "ratio")
    return {
        "rows": [
            {**dict(zip(names, row, strict=True)), "metric": "time", "shape": list(shape), "p50": 0.1}
            for row in (*own, *rows)
            for shape in (*readme.SHAPES, (7, 4, 8, 8))
        ]
    }


def test_rows_that_lose_are_shown_and_bold() -> None:
    given = recorded(("APG", "eager", "fp32", 2.0), ("APG", "eager", "bf16", 0.5), ("TCFG", "eager", "fp32", 3.0))
    text = readme.results(given)
    assert "| APG | eager | 2.00 / **0.50** |" in text
    assert "TCFG" not in text, "neither diffusers' own nor faster anywhere"
    assert "| APG | diffusers" not in text and "7×4" not in text and "100 / 100" in text


def test_a_size_that_was_not_recorded() -> None:
    given = recorded()
    given["rows"] = [row for row in given["rows"] if row["shape"] != [1, 4, 64, 64]]
    with pytest.raises(ValueError, match=r"recorded: expected results at .* got none at \[\(1, 4, 64, 64\)\]"):
        readme.results(given)


def test_markers() -> None:
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert readme.with_blocks(text, {"x": "new\n"}) == "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n"
    with pytest.raises(ValueError, match="one pair of markers <!-- y -->, got 0"):
        readme.with_blocks(text, {"y": ""})


def test_the_recorded_kernels_are_found(tmp_path: Path) -> None:
    for name, threads, cache in (("a", 1, "hot"), ("b", 2, "hot"), ("c", 4, "cold")):
        where = {"device": "cpu", "threads": threads}
        (tmp_path / f"{name}.json").write_text(json.dumps({"kind": "kernels", "environment": where, "cache": cache}))
    (tmp_path / "other.json").write_text('{"kind": "quality"}')
    assert readme.kernels_of(tmp_path)["environment"]["threads"] == 2
    (tmp_path / "a.json").unlink()
    (tmp_path / "b.json").unlink()
    with pytest.raises(ValueError, match="kind kernels"):
        readme.kernels_of(tmp_path)


def test_every_pair_that_loses_in_the_recorded_results_is_in_the_readme() -> None:
    results = readme.kernels_of(readme.RECORDED)
    text = (readme.ROOT / "README.md").read_text()
    for row in results["rows"]:
        if tuple(row["shape"]) in readme.SHAPES and row["metric"] == "time" and row["ratio"] < 1:
            assert f"| {row['rule']} | {row['provider'].removeprefix('diffusers ')} |" in text
