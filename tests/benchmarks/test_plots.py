"""The pictures of a made-up report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from benchmarks.plots import draw_plots, family, ratio_bars, roofline
from benchmarks.report import Environment, Report
from benchmarks.rows import Row

WHERE = Environment("cpu", "a processor", 1, "abc", {})
PEERS = {"fastcfg": 1.0, "diffusers ClassifierFreeGuidance": 4.0, "torch.compile": 0.8, "eager": 3.0}


def report(*dtypes: str) -> Report:
    row = Row("CFG", "", "time", (1, 4, 8, 8), "", 1, 1, 1, 1, 1, 1, 5, 1.0, 1, 3072, 3072, 0.5)
    rows = [
        replace(
            row, rule=rule, provider=peer, shape=shape, dtype=dtype, p50=ratio, ratio=ratio,
            ratio_p20=0.9 * ratio, ratio_p80=1.2 * ratio,
        )
        for rule in ("CFG", "APG") for shape in ((1, 4, 8, 8), (1, 4, 4, 4)) for dtype in dtypes
        for peer, ratio in PEERS.items()
    ]  # fmt: skip
    return Report(WHERE, rows)


def test_files_are_the_same_again(tmp_path: Path) -> None:
    made = report("fp32", "bf16")
    first, again = draw_plots(made, tmp_path / "a"), draw_plots(made, tmp_path / "b")
    names = [f"kernels-cpu-1thread-{p}.{s}" for p in ("roofline", "ratios-fp32", "ratios-bf16") for s in ("svg", "png")]
    assert [path.name for path in first] == names
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        if one.suffix == ".svg":
            assert ElementTree.fromstring(one.read_text()).tag.endswith("svg")


def test_nothing_measured_is_nothing_drawn(tmp_path: Path) -> None:
    assert draw_plots(Report(WHERE), tmp_path) == []


def test_every_ratio_is_a_bar_from_one() -> None:
    panels = ratio_bars(report("fp32"), "fp32").axes
    assert [panel.get_title() for panel in panels] == ["1×4×4×4", "1×4×8×8"], "the smallest shape first"
    for panel in panels:
        ends = sorted(round(bar.get_x() + bar.get_width(), 6) for bar in panel.patches)
        assert ends == [0.8, 0.8, 3.0, 3.0, 4.0, 4.0] and all(bar.get_x() == 1 for bar in panel.patches)
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["CFG", "APG"]


def test_the_roofline_is_the_copy() -> None:
    axes = roofline(report("fp32")).axes[0]
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[3072 / 1e6, 0.5]]
    assert sum(len(points.get_offsets()) for points in axes.collections) == len(report("fp32").rows)


def test_the_graphs_time_is_drawn_where_there_is_one() -> None:
    made = report("fp32")
    made.rows += [replace(row, metric="graph", p50=0.1) for row in made.rows]
    offsets = roofline(made).axes[0].collections[0].get_offsets()
    assert set(offsets[:, 1]) == {0.1}


def test_families() -> None:
    found = [family(name) for name in (*PEERS, "torch.lerp", "torch.compile cooperative", "another")]
    assert found == ["fastcfg", "diffusers", "torch.compile", "eager", "torch.lerp", "torch.compile", "eager"]
