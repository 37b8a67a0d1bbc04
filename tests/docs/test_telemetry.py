"""docs/telemetry.md: its table is complete, its server answers, its figures are the recorded ones."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import torch

from fastcfg import CFG, guide
from fastcfg.telemetry import FIGURES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "telemetry.md").read_text()


def test_every_figure_is_in_the_table() -> None:
    section = PAGE.split("## Figures")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.M) == list(FIGURES)


def test_the_server_answers_a_scrape() -> None:
    blocks = [b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "HTTPServer" in b]
    names: dict[str, Any] = {}
    exec(compile("\n".join(blocks), "docs/telemetry.md", "exec"), names)
    try:
        names["Metrics"].log_message = lambda *_: None
        for _ in range(3):
            guide(CFG(3.0), uncond=torch.ones(1, 2), cond=torch.zeros(1, 2), telemetry=names["telemetry"])
        address = "http://{}:{}/metrics".format(*names["server"].server_address)
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            text = answer.read().decode()
    finally:
        names["server"].shutdown()
        names["server"].server_close()
    assert 'fastcfg_calls_total{model="sd15"} 3' in text and 'fastcfg_delta_ratio_count{model="sd15"} 1' in text


def test_names_that_it_watches_are_there() -> None:
    from fastcfg.telemetry import Telemetry

    text = Telemetry().to_prometheus()
    for name in set(re.findall(r"fastcfg_\w+", PAGE)):
        assert re.search(rf"^# TYPE {name} ", text, re.M), name


def test_costs_are_the_recorded_ones() -> None:
    data = json.loads((ROOT / "benchmarks" / "results" / "telemetry-cpu-1thread.json").read_text())
    ratios = {(r["rule"], r["telemetry"]): r["ratio"] for r in data["rows"] if r["shape"] == [1, 4, 64, 64]}
    [header, *lines] = re.findall(r"^\| (.+) \|$", PAGE.split("## What it costs")[1], re.M)
    rules = header.split(" | ")[1:]
    for line in lines[1:]:
        who, *cells = line.split(" | ")
        assert cells == [f"{ratios[rule, who.strip('`')]:.2f}" for rule in rules], who
    assert f"takes {data['scrape_ms']:.0f} ms" in PAGE
